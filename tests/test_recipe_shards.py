"""Shards of a recipe's run: one result whatever their order, turns, and what stays whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import made_results
from rlskit import recipes
from rlskit.cli import run as command
from rlskit.cli.recipe import _executor, check, taken
from rlskit.errors import RequestError, RunError, UnmergedError
from rlskit.recipes import cell_parts, part_of_run, running
from rlskit.runtime.together import together
from rlskit.storage.locks import only_writer
from small_recipes import TWO_MODELS
from test_shards import TINY

SMALL = """
title = "a model"
[all]
n-samples = 2
batch-size = 16
[columns.clean]
eval = { limit = 64 }
[columns.pgd]
attack = { method = "pgd", eps = 0.1, steps = 2, limit = 48, fail-under = 0.001 }
[rows.rls]
checkpoint = "rls.safetensors"
"""

TWO = (
    TWO_MODELS
    + """[attack]
eps = 0.02
[columns.clean]
eval = {}
[columns.pgd]
attack = { method = "pgd" }
audit = true
[rows.rls]
convert.defense = "rls"
[rows.none]
convert.defense = "none"
"""
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    return Path("small.toml")


def written(folder: Path) -> dict[str, Any]:
    """All that a run wrote but for its times, its blocks and what is noted while it runs."""
    return {
        str(file.relative_to(folder)): re.sub(
            rb'"?(?:seconds|images_per_second|time)"?(?:: |=)"?[0-9.e-]+', b"", file.read_bytes()
        )
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name not in ("blocks", "shards", "stages")
    }


def test_shards_of_a_recipe_make_what_one_process_makes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed and goes on; the last merges; the end is anywhere."""
    monkeypatch.setattr(running, "write_reports", lambda *_: None)
    recipe.write_text(SMALL)
    line = ["convert", "tiny.py:tiny", "--image-size", "8", "--data", "digits", "-q"]
    assert command(line) == command(["train", "--epochs", "3", "--lr", "0.1", "-q"]) == 0
    run = _executor(quiet=True)
    common: dict[str, Any] = {"check": check, "takes": taken(), "trust": True, "out": "out"}
    assert recipes.run(recipe, execute=run, **common).code == 0
    Path("out").rename("whole")
    killed = [137]

    def dying(line: list[str]) -> int:
        return killed.pop() if line[0] == "attack" and killed else run(line)

    for shard, execute in (("0/2", dying), ("1/2", run)):
        if execute is dying:
            with pytest.raises(recipes.StageError, match="rls/pgd was interrupted") as failed:
                recipes.run(recipe, execute=execute, shard=shard, **common)
            assert failed.value.exit_code == 137
        with pytest.raises(UnmergedError, match=rf"shard {shard} is done; once all 2 are, the"):
            recipes.run(recipe, execute=execute, shard=shard, **common)
    assert not Path("out/results.json").exists()
    lines: list[str] = []
    monkeypatch.setattr(cell_parts, "surroundings", lambda stage: {"device": "another"})
    assert recipes.run(recipe, execute=run, note=lines.append, **common).code == 0
    assert [line.partition(": ")[2] for line in lines] == ["up to date"] * 2
    assert written(Path("out")) == written(Path("whole"))
    assert command(["merge", "out", "-q"]) == 2


class Commands:
    """Stands for the commands; `within` is called in the middle of each."""

    def __init__(self, **codes: int) -> None:
        self.ran: list[str] = []
        self.codes = codes
        self.within: Callable[[str], None] = lambda what: None

    def __call__(self, line: list[str]) -> int:
        (place,) = (Path(word) for word in line[2:] or line if ".rlskit-new" in word)
        what = f"{line[0]} {place.relative_to('out/.rlskit-new')}"
        part = line[line.index("--shard") + 1] if "--shard" in line else ""
        self.ran.append(f"{what} {part}".strip())
        self.within(what)
        code = self.codes.pop(line[0], 0)
        if not (code or part):
            file = place if place.suffix else place / "results.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(made_results.result().to_json()))
        return code


@pytest.fixture
def go(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Do a shard of two rows by stand-ins, with a `TimeoutError` where it would wait.

    It returns the stages that are not finished then.
    """

    def waits(seconds: float) -> None:
        raise TimeoutError

    def run(commands: Commands, shard: str, sets: tuple[str, ...] = (), **more: Any) -> list[str]:
        with pytest.raises(UnmergedError):
            recipes.run(
                recipe, execute=commands, out="out", trust=True, shard=shard, sets=sets, **more
            )
        stages = recipes.load(recipe, sets).stages
        return [one.name for one in stages if not recipes.is_finished(one, Path("out"))]

    monkeypatch.setattr(part_of_run, "time", SimpleNamespace(sleep=waits))
    recipe.write_text(TWO)
    return run


Go = Callable[..., list[str]]

CELLS = ["rls/clean", "rls/pgd", "none/clean", "none/pgd"]


def test_what_cannot_be_divided_is_done_once_and_nobody_waits_while_there_is_work(go: Go) -> None:
    """Shard 1 comes while shard 0 trains: it makes the other model, does its parts, and waits."""
    first, second, third, lines = Commands(), Commands(), Commands(), list[str]()

    def come(what: str) -> None:
        if what == "train rls/rls.safetensors":
            with pytest.raises(TimeoutError):
                go(second, "1/2", note=lines.append)

    first.within = come
    assert go(first, "0/2") == [*CELLS[:2], "rls/pgd/audit"]
    models = ["convert none/converted.safetensors", "train none/rls.safetensors"]
    assert second.ran == [*models, "eval none/clean 1/2", "attack none/pgd 1/2"]
    assert lines[-1] == "waiting for another shard to end rls/train"
    assert [one.replace("none", "rls") for one in models] == first.ran[:2]
    assert first.ran[2:] == [
        "eval rls/clean 0/2", "attack rls/pgd 0/2", "eval none/clean 0/2", "merge none/clean",
        "attack none/pgd 0/2", "merge none/pgd", "audit none/pgd/audit.json",
    ]  # fmt: skip
    assert go(third, "1/2") == []
    assert third.ran == [
        "eval rls/clean 1/2", "merge rls/clean", "attack rls/pgd 1/2", "merge rls/pgd",
        "audit rls/pgd/audit.json",
    ]  # fmt: skip
    assert go(again := Commands(), "0/2") == []
    assert again.ran == []


def test_a_shard_that_fails_is_called_again_and_does_what_it_did_not(go: Go) -> None:
    with pytest.raises(recipes.StageError, match="rls/pgd was interrupted"):
        go(Commands(attack=143), "0/2")
    assert go(again := Commands(), "0/2") == [
        *CELLS[:2],
        "rls/pgd/audit",
        *CELLS[2:],
        "none/pgd/audit",
    ]
    assert again.ran[0] == "attack rls/pgd 0/2"  # what was before is not done twice
    assert go(Commands(), "1/2") == []


def test_lost_blocks_are_looked_for_by_all_shards(go: Go) -> None:
    go(Commands(), "0/2")
    with pytest.raises(recipes.StageError, match="rls/clean failed with exit code 2"):
        go(Commands(merge=2), "1/2")
    go(found := Commands(), "0/2")
    assert found.ran == ["eval rls/clean 0/2"]


def test_what_shards_did_is_not_thrown_away(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by who is elsewhere, nor by who comes with another recipe while they work."""
    blocks = Path("out/.rlskit-new/rls/clean/blocks")

    def come(what: str) -> None:
        if what == "eval rls/clean":
            blocks.mkdir(parents=True)
            with (
                only_writer(blocks.parent, part="shard-0-of-2"),
                pytest.raises(RunError, match="is being written by process"),
            ):
                recipes.run(
                    "small.toml", execute=Commands(), out="out", trust=True, shard="1/2",
                    sets=["eval.seed=1"],
                )  # fmt: skip

    commands = Commands()
    commands.within = come
    go(commands, "0/2")
    monkeypatch.setattr(cell_parts, "surroundings", lambda stage: {"threads": "7"})
    for shard in ("1/2", None):
        with pytest.raises(
            RequestError, match=r"did some of the stage rls/clean with .*threads 7: go"
        ):
            recipes.run("small.toml", execute=Commands(), out="out", trust=True, shard=shard)
    assert blocks.is_dir()


def test_a_cell_that_means_nothing_ends_no_shard_where_a_gate_asks_for_it(go: Go) -> None:
    gate = ("gates.pgd={at-least=0.5}",)
    with pytest.raises(recipes.StageError, match="rls/pgd failed with exit code 4"):
        go(Commands(attack=4), "0/1")
    assert go(Commands(attack=4), "0/1", gate) == ["rls/pgd", "rls/pgd/audit"]


def test_torchrun_tells_a_shard_which_it_is_and_its_commands_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training would wait for the others to join in."""
    seen: list[bool] = []

    def commands(line: list[str]) -> int:
        with together() as ranks:
            seen.append(ranks.many)
        return 3

    recipe.write_text(TWO)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("rlskit.cli.run", commands)
    assert command(["run", "small.toml", "--trust", "--shard", "auto", "-q"]) == 3
    assert seen == [False]
    assert list(Path("runs").glob("*/.rlskit-new/stages/*.json"))


def test_a_shard_has_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", "any.toml", "--shard", "0/2", "--json", "-"]) == 2
    assert "leave --json to `rlskit run` without --shard" in capsys.readouterr().err
