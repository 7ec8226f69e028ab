"""Files that anyone may have changed end in a number or in one sentence, never in another error."""

from __future__ import annotations

import json
import random
import struct
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import rlskit
import small_models
from mutations import changed, damaged
from rlskit import recipes
from rlskit.cli import run as command
from rlskit.cli.recipe import check
from rlskit.errors import RequestError, RlskitError
from rlskit.models import checkpoint
from rlskit.results import comparing as comparison
from rlskit.results import read_results
from rlskit.storage.files import parse_json


def outcomes(
    work: Callable[[random.Random], object], count: int, seed: int = 0
) -> Counter[type[Exception] | None]:
    """Do something with so many changed files; count how it ended."""
    ends: Counter[type[Exception] | None] = Counter()
    for number in range(count):
        try:
            work(random.Random(f"{seed} {number}"))
        except RlskitError as error:
            ends[type(error)] += 1
        else:
            ends[None] += 1
    return ends


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished attack on a few digits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = small_models.model(trained=False)
    rlskit.attack(model, small_models.digits(12), method="fgsm", eps=0.1, out=folder)
    return folder


def test_changed_results_and_tables_are_compared_or_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 50)
    files = {name: (run / name).read_bytes() for name in ("results.json", "per_image.csv")}
    whole = json.loads(files["results.json"])

    def compared(chance: random.Random) -> None:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        name = chance.choice([*files, "results.json"])
        if name == "results.json" and chance.random() < 0.8:
            (tmp_path / name).write_text(changed(whole, chance))
        else:
            (tmp_path / name).write_bytes(damaged(files[name], chance))
        json.dumps(rlskit.compare(run, tmp_path).to_json(), allow_nan=False)

    ends = outcomes(compared, 100)
    assert ends.keys() <= {None, RequestError}
    assert min(ends.values()) > 10


RECIPE = """
title = "two"
[convert]
name = "test_resnet"
[train]
epochs = 1
lr = 0.1
[columns.pgd]
attack = { method = "pgd", eps = 0.2, n-attacked = 5, fail-under = 0.5 }
[columns.kappa]
diversity = { limit = 64, repeats = 2 }
[rows.rls]
label = "Ours"
convert = { defense = "rls", banks = 2, mean = [0.5, 0.5, 0.5] }
[rows.rls5]
of = "rls"
[paper]
rls = { pgd = 70.9 }
"""


def test_changed_recipes_are_understood_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"

    def loaded(chance: random.Random) -> None:
        file.write_bytes(damaged(RECIPE.encode(), chance))
        if chance.random() < 0.7:
            tables = json.loads(changed(tomllib.loads(RECIPE), chance)).items()
            lines = (f'"{name}" = {json.dumps(one, separators=(",", "="))}' for name, one in tables)
            file.write_text("\n".join(lines))
        recipe = recipes.load(file)
        recipes.check_stages(recipe, tmp_path / "out", check)

    ends = outcomes(loaded, 120)
    assert ends.keys() == {None, RequestError}
    assert min(ends.values()) > 10


def test_changed_cards_are_read_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.safetensors"
    checkpoint.save(small_models.model(), file)
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    card = json.loads(header["__metadata__"]["rlskit"])

    def inspected(chance: random.Random) -> None:
        header["__metadata__"]["rlskit"] = changed(card, chance)
        head = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])
        codes[command(["inspect", str(file)])] += 1

    codes: Counter[int] = Counter()
    outcomes(inspected, 120)
    assert codes.keys() == {0, 2}
    assert min(codes.values()) > 5  # most changes break the checksum, which covers the card
    assert "\x1b" not in "".join(capsys.readouterr())


def test_what_is_claimed_is_not_believed(run: Path, tmp_path: Path) -> None:
    whole = json.loads((run / "results.json").read_text())
    for name, value in (
        ("repeats", 10**12), ("n_samples", 10**30), ("attack", {}), ("accuracy", {"robust": 1}),
        ("accuracy", {}), ("data", {**whole["data"], "n": 10**12}), ("repeats", 0), ("gate", 1),
    ):  # fmt: skip
        (tmp_path / "results.json").write_text(json.dumps({**whole, name: value}))
        (tmp_path / "per_image.csv").write_bytes((run / "per_image.csv").read_bytes())
        with pytest.raises(RequestError):
            rlskit.compare(run, tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({**whole, "n_attacked": 1.5}))
    with pytest.raises(RequestError, match="got float - at n_attacked"):
        read_results(tmp_path / "results.json")
    for number in ("NaN", "1e999"):
        text = json.dumps({**whole, "model": {**whole["model"], "more": "?"}})
        (tmp_path / "results.json").write_text(text.replace('"?"', number))
        with pytest.raises(RequestError, match=f"{number} is no number of a result's"):
            read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(json.dumps(whole))
    table = (run / "per_image.csv").read_text().splitlines()
    rest = table[1].split(",", 1)[1]
    for first in ("9" * 30, '"' + "1" * 200_000, "nan"):
        (tmp_path / "per_image.csv").write_text("\n".join([table[0], f"{first},{rest}"]))
        with pytest.raises(RequestError, match=r"per_image.csv is damaged"):
            rlskit.compare(run, tmp_path)


def test_files_that_never_end_are_refused_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    deep = "a" + ".a" * 50_000 + " = 1"  # takes minutes to parse
    for name, text in (("dotted", deep), ("zero", 'extends = "/dev/zero"')):
        (tmp_path / f"{name}.toml").write_text(text)
        with pytest.raises(RequestError, match="is no file of a recipe"):
            recipes.load(tmp_path / f"{name}.toml")
    for number in range(30):  # 2^30 readings
        bases = [f"{number + 1}.toml"] * 2 if number < 29 else []
        (tmp_path / f"{number}.toml").write_text(f"extends = {json.dumps(bases)}")
    with pytest.raises(RequestError, match="more than 100 files"):
        recipes.load(tmp_path / "0.toml")
    with pytest.raises(RequestError, match="is no file of results"):
        read_results(Path("/dev/zero"))
    with pytest.raises(ValueError, match="too deeply"):
        parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="too deeply"):
        parse_json("[" * 200 + "]" * 200)
    rows = "".join(f"[rows.r{n}]\n[columns.c{n}]\neval = {{}}\n" for n in range(200))
    (tmp_path / "large.toml").write_text(rows)
    with pytest.raises(RequestError, match="40,000 cells"):
        recipes.load(tmp_path / "large.toml")
    assert time.perf_counter() - start < 10
