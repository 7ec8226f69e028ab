"""One stage of a recipe's run: whether it is up to date, and how it is brought there.

It is run in `.rlskit-new`, laid out as the run's folder. What it replaces stays until it is whole.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlskit.conversion.to_banks import FACTORY
from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.models import checkpoint
from rlskit.recipes.cell_parts import DONE, SHARDS, found, is_whole, merging
from rlskit.recipes.checking import train_options
from rlskit.recipes.looks import LASTING, take
from rlskit.recipes.noted import (
    NEW,
    discard,
    ends,
    failure,
    how,
    is_finished,
    mark_of,
    model_files,
    note_stage,
    state_file,
    state_of,
)
from rlskit.recipes.stages import AUDIT, Stage, sha256
from rlskit.results import clear
from rlskit.training import unfinished_of

Execute = Callable[[list[str]], int]
"""Runs one command line of rlskit, without the word `rlskit`; returns its exit code."""


def run_stage(stage: Stage, folder: Path, execute: Execute) -> None:
    """Run a stage, then put what it made in the place of what was there.

    What an interrupted `attack`, `eval` or `train` of the same request left is continued, and what
    all shards did of it merged.

    Raises:
        RequestError: What it would replace is not the recipe's, or shards did some of it elsewhere.
        StageError: The command failed, or its model changed meanwhile.
    """
    new, state, mark = folder / NEW, *found(stage, folder)
    if _differs_in_budget(stage, state, mark):
        state = {**state, "finished": False}
    elif {name: state.get(name) for name in mark} != mark:
        discard(stage, new)
        state = _taken_up(stage, folder, mark)
    if not (state.get("finished") and (new / stage.output).is_file()):  # else it was not moved yet
        _make(stage, folder, mark, execute, state)
    _move(stage, folder)


def call_again(stages: Iterable[Stage], folder: Path) -> None:
    """Have factories called again that bring weights: what they read may be another file now.

    A model that comes out the same, to the byte, leaves its training and its cells up to date.
    """
    for stage in stages:
        if stage.command != "convert" or not is_finished(stage, folder):
            continue
        with contextlib.suppress(RequestError):  # it is no checkpoint, as its readers will say
            if checkpoint.inspect(folder / stage.output).get("pretrained") == FACTORY:
                note_stage(stage, folder, **{**state_of(stage, folder), "finished": False})


def tidy(folder: Path) -> None:
    """Remove `.rlskit-new` where no stage is left in it."""
    new = folder / NEW
    if not any(file.is_file() for file in new.rglob("*")):
        shutil.rmtree(new, ignore_errors=True)


def _taken_up(stage: Stage, folder: Path, mark: dict[str, Any]) -> dict[str, Any]:
    """Copy the finished run of a cell that was the same but for its budget, which goes on from it.

    Returns:
        What was noted of it; nothing where there is none.
    """
    old = state_of(stage, folder)
    if stage.cell is None or not _differs_in_budget(stage, old, mark):
        return {}
    if not (folder / stage.output).is_file():
        return {}
    shutil.copytree(folder / stage.cell, folder / NEW / stage.cell)
    return {**old, "finished": False}


def _differs_in_budget(stage: Stage, state: dict[str, Any], mark: dict[str, Any]) -> bool:
    """Whether what is noted is of the same cell with another budget, or other gates to end it."""
    if stage.budget is None or state.get("fingerprint") == mark["fingerprint"]:
        return False
    return all(state.get(name) == mark[name] for name in mark if name != "fingerprint")


def _make(
    stage: Stage, folder: Path, mark: dict[str, Any], execute: Execute, state: dict[str, Any]
) -> None:
    """Have the command write into `.rlskit-new`; what was noted of an earlier one goes on.

    Raises:
        StageError: It failed, or its model changed meanwhile.
    """
    new = folder / NEW
    output, trained = new / stage.output, _is_trained(stage, new)
    if stage.cell is not None or stage.command == AUDIT:
        output.unlink(missing_ok=True)  # what was finished of it stays
    elif not (trained or unfinished_of(output).exists()):
        discard(stage, new)  # nothing continues it
    output.parent.mkdir(parents=True, exist_ok=True)
    lasting = (*LASTING, SHARDS, DONE)
    noted: dict[str, Any] = {name: state[name] for name in lasting if name in state}

    def note(**more: object) -> None:
        noted.update(more)
        note_stage(stage, new, **mark, finished=False, **noted)

    note()
    start = time.perf_counter()
    if trained:
        code = 0
    elif is_whole(state):
        code = execute(merging(stage, new))
    elif stage.budget is None:
        code = execute(stage.arguments(folder, new))
    else:
        code = take(stage, folder, new, execute, note, dict(noted))
    seconds = round(time.perf_counter() - start, 1)
    if code == RequestError.exit_code and SHARDS in noted:
        note(**{DONE: []})  # blocks were lost: whoever comes next looks for them
    elif code == RequestError.exit_code:
        discard(stage, new)
    if code not in ends(stage) or (code == UntrustedError.exit_code and not output.is_file()):
        raise failure(stage, folder, how(code), code)
    if not output.is_file():
        raise failure(stage, folder, f"wrote no {stage.output.name}", RunError.exit_code)
    if mark_of(stage, folder)["input"] != mark["input"]:
        what = "measured a model that has changed meanwhile"
        raise failure(stage, folder, what, RunError.exit_code)
    done = {"finished": True, "code": code, "seconds": seconds, "wrote": sha256(output)}
    note_stage(stage, new, **{**mark, **noted, **done})


def _is_trained(stage: Stage, new: Path) -> bool:
    """Whether a training was killed just when it was finished."""
    output = new / stage.output
    if stage.command != "train" or not output.is_file() or unfinished_of(output).exists():
        return False
    records = checkpoint.inspect(output)["training"]
    return bool(records) and records[-1].get("epochs") == train_options(stage).epochs


def _move(stage: Stage, folder: Path) -> None:
    """Move a finished stage to its place; after a kill at any point, doing it again is enough."""
    new = folder / NEW
    state = state_of(stage, new)
    state_file(stage, folder).unlink(missing_ok=True)
    (folder / stage.output).parent.mkdir(parents=True, exist_ok=True)
    if stage.cell is None:
        for file in model_files(stage, new):
            file.replace(folder / file.relative_to(new))
    else:
        _move_folder(new / stage.cell, folder / stage.cell, state_file(stage, new))
    note_stage(stage, folder, **state)
    state_file(stage, new).unlink()


def _move_folder(made: Path, place: Path, beside: Path) -> None:
    """Put a folder in the place of another, whose files that are not a run's stay in it."""
    before = beside.with_suffix(".before")
    if before.exists():
        _keep_foreign(before, place)
    place.rename(before)
    made.rename(place)
    _keep_foreign(before, place)


def _keep_foreign(before: Path, place: Path) -> None:
    """Remove a run that was replaced; what else lay in its folder is moved to the new one's."""
    clear(before)
    for file in [file for file in before.rglob("*") if not file.is_dir()]:
        target = place / file.relative_to(before)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    shutil.rmtree(before)
