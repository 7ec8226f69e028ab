"""Runs on a disk that is full, read-only, in the way or gone: one sentence, and whole files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import small_models
from full_disk import FullDisk
from rlskit import attack_all, evaluate
from rlskit.attacks import prepare
from rlskit.cli import run
from rlskit.cli.option_sets import Network
from rlskit.errors import RequestError
from rlskit.evaluation import EvalOptions
from rlskit.models.banks import BankedModel
from rlskit.results.journal import BLOCK, free_folder
from rlskit.storage.sealed import read_sealed, write_sealed
from test_shards import written

DATA = small_models.digits(24)

RUNS: dict[str, Callable[..., Any]] = {
    "attack": lambda model, out: attack_all(
        model, DATA, attacks=[prepare("fgsm", eps=0.1)], save_adversarial=True, out=out,
        options=EvalOptions(n_samples=2, batch_size=8),
    ),
    "eval": lambda model, out: evaluate(model, DATA, n_samples=2, batch_size=8, out=out),
}  # fmt: skip


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 3)


@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk_leaves_all_files_whole(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is full at ever later moments; what was written before is gone on with."""
    RUNS[name](rls, tmp_path / "whole")
    out, disk, failures = tmp_path / "run", FullDisk(monkeypatch), 0
    while not (out / "results.json").exists():  # which is written last
        disk.room = failures
        try:
            RUNS[name](rls, out)
        except OSError:
            failures += 1
        assert not list(out.rglob(".*"))
        for file in out.glob("blocks/*"):
            read_sealed(file, BLOCK)
    assert failures >= 6
    assert written(out) == written(tmp_path / "whole")


@pytest.fixture
def said(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, int], str]:  # fmt: skip
    """Run a command in `run` that must end with a code and one sentence; return the sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Network, "load", lambda self: rls)

    def ends(command: str, code: int) -> str:
        capsys.readouterr()
        line = [*command.split(), "--limit", "24", "--batch-size", "8", "-q", "-o", "run"]
        assert run([*line, "--data", "digits"]) == code
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        return message

    return ends


COMMANDS = ("attack --method fgsm --eps 0.1", "eval", "diversity")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_fails_is_one_sentence(
    said: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """At the second block; the first one stays, but where the folder is gone."""
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES, 0):

        def fails(path: Path, *rest: Any, number: int = number) -> None:
            if path.stem == "0-8" and number:
                raise OSError(number, os.strerror(number), str(path))
            write_sealed(path, *rest)
            if path.stem == "0-8":
                shutil.rmtree("run")

        monkeypatch.setattr("rlskit.results.journal.write_sealed", fails)
        message = said(command, 3)
        if number:
            assert f"{os.strerror(number)} (run/blocks/0-8.safetensors); what was" in message
            assert [file.name for file in Path("run/blocks").iterdir()] == ["0-0.safetensors"]
        else:
            assert "run was removed while its run was at work" in message
            assert not Path("run").exists()


@pytest.mark.parametrize(
    ("place", "is_folder"),
    [("run", False), ("run/blocks", False), ("run/shards", False), ("run/run.json", True),
     ("run/results.json", True), ("run/per_image.csv", True),
     ("run/blocks/0-8.safetensors", True)],
)  # fmt: skip
def test_what_is_in_the_way_is_refused_and_stays(
    said: Callable[[str, int], str], place: str, is_folder: bool
) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).mkdir() if is_folder else Path(place).write_text("mine")
    before = sorted(Path().rglob("*"))
    for command in COMMANDS:
        message = said(command, 2)
        assert place in message
        assert "name another --out" in message
        assert sorted(Path().rglob("*")) == before


def test_a_file_in_the_place_of_all_runs_is_refused_and_stays(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.write_text("mine")
    with pytest.raises(RequestError, match="runs is not a folder, nor can it become one"):
        free_folder(runs, "attack")
    assert runs.read_text() == "mine"
