"""Two runs compared: by hand, from the files that runs write, and by the command line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_results
import rlskit
from rlskit.cli import run
from rlskit.documents import to_json
from rlskit.errors import RequestError
from rlskit.results import Journal, dump, summary
from rlskit.stats import mcnemar, sign_flip, wilson

Z95 = 1.959963984540054
PGD: dict[str, Any] = to_json(made_results.PGD)
Repeats = Sequence[Sequence[int]]
"""Whether each image was right, one list per repeat."""


def write(
    folder: Path,
    robust: Repeats,
    clean: Repeats | None = None,
    paths: Sequence[str] | None = None,
    **fields: Any,
) -> Path:
    """Write a run of given outcomes: image i has label i % 10, and where it is wrong answers 99."""
    clean = [[1] * len(one) for one in robust] if clean is None else clean
    found = Journal(folder, {})
    for repeat, columns in enumerate(zip(clean, robust, strict=True)):
        label = torch.arange(len(columns[0])) % 10
        block = {"index": torch.arange(len(label)), "label": label}
        for kind, right in zip(("clean", "robust"), columns, strict=True):
            block[kind] = torch.where(torch.tensor(right, dtype=torch.bool), label, 99)[:, None]
        found.put(repeat, 0, block)
    accuracy = summary.accuracies([found], len(robust), 0)
    n, repeats = len(robust[0]), len(robust)
    images = {"index": range(n)} | ({} if paths is None else {"path": paths})
    found.write_per_image(summary.per_image(found, repeats, images))
    about = {"data": made_results.images(n), "repeats": repeats, "accuracy": accuracy}
    found.write_results(dump([made_results.result(**{**about, **fields})]))
    return folder


def edit(folder: Path, **fields: Any) -> Path:
    """Change fields of a run's results; of an object only those that are given."""
    file = folder / "results.json"
    file.write_text(json.dumps(merged(json.loads(file.read_text()), fields)))
    return folder


def merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Eight images: A alone is right on one, B alone on four, both on two, neither on one."""
    a = write(tmp_path / "a", [[1, 0, 0, 0, 0, 1, 1, 0]])
    b = write(tmp_path / "b", [[0, 1, 1, 1, 1, 1, 1, 0]], defense="ensemble", n_samples=2)
    return a, b


def test_what_newly_falls_is_named_with_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over three repeats: 0 in all, 2 in two more; 1 is right more often, 3 as often."""
    names = [f"cat/{i}.png" for i in range(4)]
    a = write(tmp_path / "a", [[1, 0, 1, 1], [1, 0, 0, 0], [1, 0, 1, 1]], paths=names)
    b = write(tmp_path / "b", [[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]], paths=names)
    (pair,) = rlskit.compare(a, b).pairs
    fallen = pair.differences["robust"].fallen
    assert [(one.index, one.label, one.answer, one.path) for one in fallen] == [
        (0, 0, 99, "cat/0.png"), (2, 2, 99, "cat/2.png"),
    ]  # fmt: skip
    assert len(fallen) == pair.differences["robust"].only_a
    assert pair.differences["clean"].fallen == ()
    assert run(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "robust under pgd eps=0.02: 2 images newly fall (right in A, not in B)" in out
    assert "image 2 (cat/2.png): label 2, answered 99" in out


def test_the_first_ten_are_listed_and_all_are_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(write(tmp_path / name, [[right] * 12])) for name, right in (("a", 1), ("b", 0))]
    assert run(["compare", *paths, "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert (out.count("  image "), out.count("and 2 more")) == (10, 1)
    (pair,) = json.loads((tmp_path / "found.json").read_text())["pairs"]
    assert [one["index"] for one in pair["accuracy"]["robust"]["fallen"]] == list(range(12))


def test_one_repeat_by_hand(pair: tuple[Path, Path]) -> None:
    found = rlskit.compare(*pair)
    (only,) = found.pairs
    assert list(only.differences) == ["clean", "robust"]
    robust = only.differences["robust"]
    assert (robust.a.mean, robust.b.mean) == (3 / 8, 6 / 8)
    assert tuple(robust.a.ci95) == pytest.approx(wilson(3, 8))
    assert robust.difference == 3 / 8
    assert (robust.test, robust.only_a, robust.only_b) == ("mcnemar", 1, 4)
    assert robust.p_value == pytest.approx(2 * 6 / 2**5)
    assert -0.3 < robust.ci95[0] < 3 / 8 < robust.ci95[1] < 1
    clean = only.differences["clean"]
    assert (clean.difference, clean.p_value) == (0, 1)
    assert -0.5 < clean.ci95[0] < 0 < clean.ci95[1] < 0.5  # 8 images that agree prove little
    assert found.left_out == ()


def test_the_other_way_round_changes_signs_only(pair: tuple[Path, Path]) -> None:
    there = rlskit.compare(*pair).pairs[0].differences["robust"]
    back = rlskit.compare(*reversed(pair)).pairs[0].differences["robust"]
    assert back.difference == -there.difference
    assert (back.only_a, back.only_b, back.p_value) == (there.only_b, there.only_a, there.p_value)


def test_the_interval_is_that_of_paired_differences(tmp_path: Path) -> None:
    """Two runs that nearly agree differ far less than their own intervals say."""
    rng = np.random.default_rng(0)
    a = rng.random(2000) < 0.6
    b = np.where(rng.random(2000) < 0.08, ~a, a)
    runs = write(tmp_path / "a", [a.tolist()]), write(tmp_path / "b", [b.tolist()])
    robust = rlskit.compare(*runs).pairs[0].differences["robust"]
    gains = b.astype(float) - a.astype(float)
    half = Z95 * gains.std() / math.sqrt(2000)
    wanted = gains.mean() - half, gains.mean() + half
    assert robust.ci95 == pytest.approx(wanted, abs=0.1 * half)
    assert robust.p_value == mcnemar(int((gains < 0).sum()), int((gains > 0).sum()))
    unpaired = robust.a.ci95[1] - robust.a.ci95[0]
    assert robust.ci95[1] - robust.ci95[0] < unpaired


def test_the_seed_decides_the_resamples(pair: tuple[Path, Path]) -> None:
    first, again, other = (
        rlskit.compare(*pair, seed=seed).pairs[0].differences["robust"] for seed in (0, 0, 1)
    )
    assert first == again
    assert first.p_value == other.p_value


def test_identical_runs_do_not_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    repeats = (rng.random((3, 50)) < 0.5).tolist()
    same = write(tmp_path / "a", repeats, repeats)
    for difference in rlskit.compare(same, same).pairs[0].differences.values():
        assert difference.difference == 0
        assert list(difference.ci95) == pytest.approx([-3 / 52, 3 / 52])
        assert (difference.only_a, difference.only_b, difference.p_value) == (0, 0, 1)


def test_several_repeats_are_means_of_images(tmp_path: Path) -> None:
    # gains in halves: 0, +2, +1, -1
    a = write(tmp_path / "a", [[1, 0, 0, 1], [1, 0, 1, 0]])
    b = write(tmp_path / "b", [[1, 1, 1, 0], [1, 1, 1, 0]])
    robust = rlskit.compare(a, b).pairs[0].differences["robust"]
    assert robust.test == "sign-flip"
    assert robust.difference == (0 + 2 + 1 - 1) / 8
    assert (robust.only_a, robust.only_b) == (1, 2)
    # |+-2 +-1 +-1| >= 2 in 6 of 8 ways
    assert robust.p_value == pytest.approx(6 / 8)


def test_runs_may_have_different_numbers_of_repeats(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [[1, 0, 0]] * 2)
    b = write(tmp_path / "b", [[1, 1, 0], [0, 1, 0], [1, 1, 1]])
    robust = rlskit.compare(a, b).pairs[0].differences["robust"]
    assert robust.difference == pytest.approx((2 / 3 - 1 + 1 + 1 / 3) / 3)
    assert robust.p_value == pytest.approx(sign_flip(np.array([-2, 6, 2])))


def test_a_repeat_is_not_another_image(tmp_path: Path) -> None:
    """Ten times the same outcomes: the same interval, and the same p as once."""
    rng = np.random.default_rng(2)
    outcomes = {str(share): (rng.random(60) < share).tolist() for share in (0.4, 0.6)}
    found = []
    for times in (1, 10):
        runs = [write(tmp_path / f"{name}{times}", [one] * times) for name, one in outcomes.items()]
        found.append(rlskit.compare(*runs).pairs[0].differences["robust"])
    once, ten = found
    assert ten.ci95 == pytest.approx(once.ci95, rel=1e-12)
    assert ten.p_value == pytest.approx(once.p_value, rel=1e-9)
    assert (ten.only_a, ten.only_b) == (once.only_a, once.only_b)


def test_the_scale_of_a_budget_does_not_matter(pair: tuple[Path, Path]) -> None:
    stated = PGD | {"stated": {"eps": 0.04, "steps": 10}, "pixel_range": "-1:1", "compiled": True}
    assert len(rlskit.compare(pair[0], edit(pair[1], attack=stated)).pairs) == 1


DIFFERENT = [
    ({"protocol": "eot"}, r"different protocols \(A: multi n=5; B: eot n=5\)"),
    ({"n_attacked": 3}, r"different protocols \(A: multi n=5; B: multi n=3\)"),
    ({"per_example": True}, r"different protocols .*; B: multi n=5 per image\)"),
    ({"data": {"n": 8, "split": "test", "sha256": "z"}}, r"different images \(sha256: y in A"),
    ({"data": {"n": 8, "split": "train", "sha256": "y"}}, r"different images \(split: test in A"),
    ({"data": {"n": 9, "split": "test", "sha256": "y"}}, r"different images \(n: 8 in A, 9 in B"),
    ({"attack": PGD | {"params": {"eps": 0.02, "steps": 20}}}, "they differ in steps"),
    ({"attack": PGD | {"method": "fgsm"}}, r"no attack in common .* differ in method"),
    ({"attack": PGD | {"view": "mean-logit"}}, "they differ in view"),
    ({"command": "diversity"}, "keeps no answers per image"),
    ({"repeats": 2}, "8 rows, not 2 repeats of 8 images"),
    ({"schema": "rlskit.result/2"}, "of version 2, and this rlskit reads rlskit.result/1 only"),
    ({"n_samples": 0}, "is not a result of rlskit.result/1"),
    ({"accuracy": {"robust": {"mean": 0.5}}}, r"robust accuracy 0\.75, but results\.json 0\.5"),
]


@pytest.mark.parametrize(("fields", "message"), DIFFERENT)
def test_what_cannot_be_compared_is_refused(
    pair: tuple[Path, Path], fields: dict[str, Any], message: str
) -> None:
    edit(pair[1], **fields)
    with pytest.raises(RequestError, match=message):
        rlskit.compare(*pair)


def test_the_adaptive_protocol_saw_as_many_draws_where_it_may_choose(
    pair: tuple[Path, Path],
) -> None:
    ten = edit(pair[0], protocol="adaptive", n_attacked=10)
    one = edit(pair[1], protocol="adaptive", n_attacked=1)
    with pytest.raises(RequestError, match=r"\(A: adaptive n=10; B: adaptive n=1\)"):
        rlskit.compare(ten, one)
    edit(one, defense="none")  # of which there is one draw only
    assert len(rlskit.compare(ten, one).pairs) == 1


def test_known_beside_another_protocol_tells_what_is_hidden(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    known, eot = edit(pair[0], protocol="known", n_attacked=10), edit(pair[1], protocol="eot")
    sentence = "of the 75.0 points that eot n=5 leaves, 37.5 are hidden and 37.5 robust"
    for one, other in ((known, eot), (eot, known)):
        assert rlskit.compare(one, other).pairs[0].hidden == sentence
    assert run(["compare", str(eot), str(known)]) == 0
    assert sentence in capsys.readouterr().out
    assert rlskit.compare(eot, eot).pairs[0].hidden == ""
    assert rlskit.compare(known, known).pairs[0].hidden == ""
    edit(known, checkpoint={"sha256": "another"})
    with pytest.raises(RequestError, match="different protocols"):
        rlskit.compare(known, eot)


def change_table(folder: Path, column: str, value: str) -> None:
    """Set the last image's entry of a column."""
    file = folder / "per_image.csv"
    header, *rows = csv.reader(file.read_text().splitlines())
    rows[-1][header.index(column)] = value
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("index", "0", "does not hold every image once per repeat"),
        ("index", "x", "is damaged"),
        ("repeat", "", "is damaged"),
        ("label", "3", "are not of the same run"),
        ("robust", "7", "are not of the same run"),
    ],
)
def test_tables_are_checked(pair: tuple[Path, Path], column: str, value: str, message: str) -> None:
    change_table(pair[1], column, value)
    with pytest.raises(RequestError, match=message):
        rlskit.compare(*pair)


def test_files_that_are_not_there_or_not_results(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no .*nowhere; name a run's folder"):
        rlskit.compare(pair[0], tmp_path / "nowhere")
    torn = tmp_path / "torn.json"
    for text in ("{", "[]", "7"):
        torn.write_text(text)
        with pytest.raises(RequestError, match=r"torn\.json (cannot be read|does not hold)"):
            rlskit.compare(torn, pair[0])
    shutil.copy(pair[0] / "results.json", tmp_path / "A.json")
    with pytest.raises(RequestError, match=r"there is no .*per_image\.csv"):
        rlskit.compare(tmp_path / "A.json", pair[1])


TINY = """
from torch import nn

def tiny(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of an undefended network and of RLS: attacks, and clean evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(TINY)
    for defense, banks in (("none", "1"), ("rls", "3")):
        file = str(folder / f"{defense}.safetensors")
        convert = ["convert", str(folder / "tiny.py:tiny"), "--image-size", "8", "-o", file]
        assert run([*convert, "--defense", defense, "--banks", banks, "-q"]) == 0
        assert run(["train", file, "--epochs", "2", "--lr", "0.1", "-q"]) == 0
        common = [file, "--limit", "90", "-q", "--batch-size", "40"]
        repeats = ["--repeats", "1" if defense == "none" else "2"]
        methods = ["fgsm,noise", "fgsm,pgd"][defense == "rls"]
        attack = ["attack", *common, *repeats, "--eps", "8/255", "--n-attacked", "2"]
        assert run([*attack, "--method", methods, "-o", str(folder / f"{defense}-attack")]) == 0
        sweep = "1" if defense == "none" else "1,5"
        evaluate = ["eval", *common, "--n-samples", sweep, "-o", str(folder / f"{defense}-eval")]
        assert run(evaluate) == 0
    return folder


def test_the_command_on_attacks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    a, b = runs / "none-attack", runs / "rls-attack"
    assert run(["compare", str(a), str(b / "results.json")]) == 0
    shown = capsys.readouterr()
    for part in ("fgsm", "multi n=2", "sign-flip", "90 images", "N = 10, R = 2"):
        assert part in shown.out
    notes = shown.err.splitlines()
    assert "left out: A: noise eps=0.03137, which B was not attacked with" in notes
    assert sum("worst-case" in line for line in notes) == 2
    assert run(["compare", str(a), str(b), "--json", "-", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "rlskit.comparison/1"
    assert found["data"]["n"] == 90
    assert (found["a"]["defense"], found["b"]["defense"]) == ("none", "rls")
    assert [one["attack"]["method"] for one in found["pairs"]] == ["fgsm"]
    results = [json.loads((one / "results.json").read_text())[0] for one in (a, b)]
    for kind, difference in found["pairs"][0]["accuracy"].items():
        means = [one["accuracy"][kind]["mean"] for one in results]
        assert difference["difference"] == pytest.approx(means[1] - means[0])
        assert difference["ci95"][0] <= difference["difference"] <= difference["ci95"][1]
        assert len(difference["fallen"]) == difference["only_a"]
        assert set(difference) == {
            "a", "b", "difference", "ci95", "bounds", "test", "only_a", "only_b", "p_value",
            "fallen",
        }  # fmt: skip
    assert set(found) == {
        "schema", "a", "b", "data", "protocol", "n_attacked", "per_example", "seed", "resamples",
        "pairs", "left_out", "warnings",
    }  # fmt: skip


def test_the_worst_case_is_read_from_all_tables(runs: Path) -> None:
    """A run against itself pairs every attack and the worst case, whose table there is none of."""
    found = rlskit.compare(runs / "rls-attack", runs / "rls-attack")
    methods = [pair.a.attack.method for pair in found.pairs if pair.a.attack]
    assert methods == ["fgsm", "pgd", "worst-case"]
    assert found.left_out == ()
    assert found.pairs[2].differences["robust"].difference == 0


def test_several_attacks_and_one(runs: Path, tmp_path: Path) -> None:
    """One attack of several, from its own folder, has its partner in the whole run."""
    one = next((runs / "rls-attack").glob("pgd*"))
    found = rlskit.compare(one, runs / "rls-attack")
    assert len(found.pairs) == 1
    assert len(found.left_out) == 2
    whole = tmp_path / "run"
    shutil.copytree(runs / "rls-attack", whole)
    shutil.rmtree(whole / one.name)
    with pytest.raises(RequestError, match=r"no folder below .* holds the run of pgd"):
        rlskit.compare(one, whole)


def test_the_command_on_clean_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["compare", str(runs / "none-eval"), str(runs / "rls-eval")]
    assert run([*arguments, "--json", str(runs / "c.json"), "--seed", "3"]) == 0
    shown = capsys.readouterr()
    assert "mcnemar" in shown.out
    assert "left out: B: N = 1, because per_image.csv holds the answers of N = 5 only" in shown.err
    found = json.loads((runs / "c.json").read_text())
    assert list(found["pairs"][0]["accuracy"]) == ["clean"]
    assert (found["protocol"], found["n_attacked"], found["seed"]) == ("clean", None, 3)
    assert found["b"]["n_samples"] == 5
    assert run([*arguments, "--json", str(runs / "c.json")]) == 2
    assert "--force replaces it" in capsys.readouterr().err


def test_two_defenses_on_the_same_saved_images(runs: Path, tmp_path: Path) -> None:
    none, rls = (str(runs / f"{name}.safetensors") for name in ("none", "rls"))
    attack = ["attack", none, "--method", "fgsm", "--eps", "8/255", "--limit", "50", "-q"]
    assert run([*attack, "--save-adversarial", "-o", str(tmp_path / "made")]) == 0
    images = ["--adversarial", str(tmp_path / "made" / "adversarial.safetensors"), "-q"]
    for name, file in (("a", none), ("b", rls)):
        assert run(["eval", file, *images, "-o", str(tmp_path / name)]) == 0
    found = rlskit.compare(tmp_path / "a", tmp_path / "b")
    assert list(found.pairs[0].differences) == ["robust"]
    transfer = "These images were made against another checkpoint: a transfer test."
    assert f"B: {transfer}" in found.warnings
    assert f"A: {transfer}" not in found.warnings
    with pytest.raises(RequestError, match=r"A: transfer n=1; B: transfer n=1 on saved images"):
        rlskit.compare(tmp_path / "made", tmp_path / "b")


def test_the_command_refuses_in_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["compare", str(runs / "none-eval"), str(runs / "rls-attack")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "different protocols (A: clean; B: multi n=2)" in captured.err
    assert captured.err.count("\n") == 1
