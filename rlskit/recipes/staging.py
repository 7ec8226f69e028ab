"""One stage of a recipe's run: whether it is up to date, and how it is brought there.

It is run in `.rlskit-new`, laid out as the run's folder. What it replaces stays until it is whole.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.evaluation.subject import library_versions
from rlskit.models import checkpoint
from rlskit.recipes.checking import train_options
from rlskit.recipes.looks import LASTING, take
from rlskit.recipes.stages import AUDIT, Stage, sha256
from rlskit.results import clear
from rlskit.runtime.devices import choose_device
from rlskit.storage.files import parse_json, write_text
from rlskit.training import unfinished_of
from rlskit.training.unfinished import versions

Execute = Callable[[list[str]], int]
"""Runs one command line of rlskit, without the word `rlskit`; returns its exit code."""

GATE = 1
"""Exit code of a command that is finished but for a gate that was not met."""

NEW = ".rlskit-new"


class StageError(RunError):
    """A stage failed; it carries the exit code of the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_finished(stage: Stage, folder: Path) -> bool:
    """Whether the stage need not run: it did, just so, on the same input; its output is there."""
    state, mark = state_of(stage, folder), _mark(stage, folder)
    unchanged = {name: state.get(name) for name in mark} == mark
    return bool(unchanged and state.get("finished") and (folder / stage.output).is_file())


def state_of(stage: Stage, folder: Path) -> dict[str, Any]:
    """Return what is noted of a stage; nothing where it never began, or the note is damaged."""
    try:
        state = parse_json(_state_file(stage, folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(state, dict) and state.get("code", 0) in _ends(stage)
    return state if whole else {}


def run_stage(stage: Stage, folder: Path, execute: Execute) -> None:
    """Run a stage, then put what it made in the place of what was there.

    What an interrupted `attack`, `eval` or `train` of the same request left is continued.

    Raises:
        RequestError: What it would replace is not the recipe's.
        StageError: The command failed, or its model changed meanwhile.
    """
    new, mark = folder / NEW, {**_mark(stage, folder), "with": _surroundings(stage)}
    state = state_of(stage, new)
    _refuse_foreign(stage, folder)
    if _differs_in_budget(stage, state, mark):
        state = {**state, "finished": False}
    elif {name: state.get(name) for name in mark} != mark:
        _discard(stage, new)
        state = _taken_up(stage, folder, mark)
    if not (state.get("finished") and (new / stage.output).is_file()):  # else it was not moved yet
        _make(stage, folder, mark, execute, state)
    _move(stage, folder)


def _ends(stage: Stage) -> tuple[int, ...]:
    """Return the exit codes of a command that is finished; an audit says 4 where a check fails."""
    return (0, UntrustedError.exit_code if stage.command == AUDIT else GATE)


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
        _discard(stage, new)  # nothing continues it
    output.parent.mkdir(parents=True, exist_ok=True)
    noted: dict[str, Any] = {name: state[name] for name in LASTING if name in state}

    def note(**more: object) -> None:
        noted.update(more)
        _note(stage, new, **mark, finished=False, **noted)

    note()
    start = time.perf_counter()
    if trained:
        code = 0
    elif stage.budget is None:
        code = execute(stage.arguments(folder, new))
    else:
        code = take(stage, folder, new, execute, note, dict(noted))
    seconds = round(time.perf_counter() - start, 1)
    if code == RequestError.exit_code:
        _discard(stage, new)
    if code not in _ends(stage) or (code == UntrustedError.exit_code and not output.is_file()):
        what = "was interrupted" if code >= 128 else f"failed with exit code {code}"
        raise _failure(stage, folder, what, code)
    if not output.is_file():
        raise _failure(stage, folder, f"wrote no {stage.output.name}", RunError.exit_code)
    if _mark(stage, folder)["input"] != mark["input"]:
        what = "measured a model that has changed meanwhile"
        raise _failure(stage, folder, what, RunError.exit_code)
    _note(stage, new, **{**mark, **noted}, finished=True, code=code, seconds=seconds)


def _is_trained(stage: Stage, new: Path) -> bool:
    """Whether a training was killed just when it was finished."""
    output = new / stage.output
    if stage.command != "train" or not output.is_file() or unfinished_of(output).exists():
        return False
    records = checkpoint.inspect(output)["training"]
    return bool(records) and records[-1].get("epochs") == train_options(stage).epochs


def _failure(stage: Stage, folder: Path, what: str, code: int) -> StageError:
    return StageError(
        f"the stage {stage.name} {what}; what is finished is kept in {folder}, and the same "
        "`rlskit run` goes on from there",
        code,
    )


def _move(stage: Stage, folder: Path) -> None:
    """Move a finished stage to its place; after a kill at any point, doing it again is enough."""
    new = folder / NEW
    state = state_of(stage, new)
    _state_file(stage, folder).unlink(missing_ok=True)
    (folder / stage.output).parent.mkdir(parents=True, exist_ok=True)
    if stage.cell is None:
        for file in _model_files(stage, new):
            file.replace(folder / file.relative_to(new))
    else:
        _move_folder(new / stage.cell, folder / stage.cell, _state_file(stage, new))
    _note(stage, folder, **state)
    _state_file(stage, new).unlink()


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


def _refuse_foreign(stage: Stage, folder: Path) -> None:
    """Require that what a stage would replace was made by a stage of this recipe.

    Raises:
        RequestError: It was not.
    """
    known = state_of(stage, folder) or state_of(stage, folder / NEW)
    if not known and (folder / stage.output).exists():
        raise RequestError(
            f"{folder / stage.output} was not written by this recipe's {stage.name}, and is not "
            "replaced; move it away, or name another `out`"
        )


def _discard(stage: Stage, new: Path) -> None:
    """Remove what a stage that is not finished left in `.rlskit-new`."""
    if stage.cell is not None:
        shutil.rmtree(new / stage.cell, ignore_errors=True)
    for file in _model_files(stage, new) if stage.cell is None else ():
        file.unlink()
    _state_file(stage, new).unlink(missing_ok=True)


def _model_files(stage: Stage, new: Path) -> list[Path]:
    """Return the model that a stage made, last, and what a training writes beside it."""
    output = new / stage.output
    return sorted(output.parent.glob(f"{output.stem}.*"), key=lambda file: file == output)


def _mark(stage: Stage, folder: Path) -> dict[str, str | None]:
    """Return what decides a stage's output: its fingerprint, and the digest of what it takes.

    Of one with a budget also the fingerprint that it would have with any other.
    """
    taken = stage.taken(folder)
    digest = sha256(taken) if taken is not None and taken.is_file() else None
    found = {"fingerprint": stage.fingerprint(), "input": digest}
    if stage.budget is not None:
        found["but for budget"] = replace(stage, budget=None).fingerprint()
    return found


def _surroundings(stage: Stage) -> dict[str, str]:
    """Return what must be the same for an interrupted stage to go on: results depend on it."""
    device = choose_device(str(stage.options.get("device", "auto"))).type
    libraries = versions() if stage.command == "train" else library_versions()
    return {**libraries, "threads": str(torch.get_num_threads()), "device": device}


def _state_file(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name.replace('/', '.')}.json"


def _note(stage: Stage, folder: Path, **state: object) -> None:
    _state_file(stage, folder).parent.mkdir(parents=True, exist_ok=True)
    write_text(_state_file(stage, folder), json.dumps(state) + "\n", force=True)
