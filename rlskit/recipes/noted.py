"""What is noted of a stage: of what request it is, how far it came, and whether it is finished.

A finished one's note stands in `stages/` of the run's folder, any other in `.rlskit-new/stages/`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.evaluation.subject import library_versions
from rlskit.recipes.stages import AUDIT, Stage, sha256
from rlskit.runtime.devices import choose_device
from rlskit.storage.files import parse_json, write_text
from rlskit.training.unfinished import versions

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
    state = state_of(stage, folder)
    if not (state.get("finished") and (folder / stage.output).is_file()):
        return False  # which costs nothing to ask again and again
    mark = mark_of(stage, folder)
    return {name: state.get(name) for name in mark} == mark


def is_as_written(stage: Stage, folder: Path) -> bool:
    """Whether a finished stage's output is what its command wrote; older notes do not tell."""
    return state_of(stage, folder).get("wrote") in (None, sha256(folder / stage.output))


def state_of(stage: Stage, folder: Path) -> dict[str, Any]:
    """Return what is noted of a stage; nothing where it never began, or the note is damaged."""
    try:
        state = parse_json(state_file(stage, folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(state, dict) and state.get("code", 0) in ends(stage)
    return state if whole else {}


def ends(stage: Stage) -> tuple[int, ...]:
    """Return the exit codes of a command that is finished; an audit says 4 where a check fails."""
    return (0, UntrustedError.exit_code if stage.command == AUDIT else GATE)


def mark_of(stage: Stage, folder: Path) -> dict[str, str | None]:
    """Return what decides a stage's output: its fingerprint, and the digest of what it takes.

    Of one with a budget also the fingerprint that it would have with any other.
    """
    taken = stage.taken(folder)
    digest = sha256(taken) if taken is not None and taken.is_file() else None
    found = {"fingerprint": stage.fingerprint(), "input": digest}
    if stage.budget is not None:
        found["but for budget"] = replace(stage, budget=None).fingerprint()
    return found


def surroundings(stage: Stage) -> dict[str, str]:
    """Return what must be the same for an interrupted stage to go on: results depend on it."""
    device = choose_device(str(stage.options.get("device", "auto"))).type
    libraries = versions() if stage.command == "train" else library_versions()
    return {**libraries, "threads": str(torch.get_num_threads()), "device": device}


def discard(stage: Stage, new: Path) -> None:
    """Remove what a stage that is not finished left in `.rlskit-new`."""
    if stage.cell is not None:
        shutil.rmtree(new / stage.cell, ignore_errors=True)
    for file in model_files(stage, new) if stage.cell is None else ():
        file.unlink()
    state_file(stage, new).unlink(missing_ok=True)


def model_files(stage: Stage, new: Path) -> list[Path]:
    """Return the model that a stage made, last, and what a training writes beside it."""
    output = new / stage.output
    return sorted(output.parent.glob(f"{output.stem}.*"), key=lambda file: file == output)


def failure(stage: Stage, folder: Path, what: str, code: int) -> StageError:
    """Return the error that a stage ends a run with, with its command's exit code."""
    return StageError(
        f"the stage {stage.name} {what}; what is finished is kept in {folder}, and the same "
        "`rlskit run` goes on from there",
        code,
    )


def unmade(stage: Stage) -> RequestError:
    """Return the error that what a stage needs is not finished, and will not be."""
    assert stage.needs is not None
    return RequestError(
        f"the stage {stage.name} needs {stage.needs.name}, which is not finished or has "
        f"changed; run that too, as with `only='{Path(stage.name).parts[0]}/*'`"
    )


def how(code: int) -> str:
    """Say how a command that is not finished ended."""
    return "was interrupted" if code >= 128 else f"failed with exit code {code}"


def state_file(stage: Stage, folder: Path) -> Path:
    """Return the file that a stage's note stands in."""
    return folder / "stages" / f"{stage.name.replace('/', '.')}.json"


def note_stage(stage: Stage, folder: Path, **state: object) -> None:
    """Note what is known of a stage, in place of what was."""
    state_file(stage, folder).parent.mkdir(parents=True, exist_ok=True)
    write_text(state_file(stage, folder), json.dumps(state) + "\n", force=True)
