"""Running a recipe: what is finished and unchanged is left alone, the rest runs in order.

runs/FOLDER-FILE/
├── ROW/converted.safetensors, rls.safetensors    the row's model, before and after training
├── ROW/COLUMN/results.json                       a cell, with all that the command keeps beside it
├── stages/ROW.STAGE.json                         how far a stage is, and its fingerprint
└── table.md                                      written last
"""

from __future__ import annotations

import fnmatch
import json
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlskit.devices import choose_device
from rlskit.errors import RequestError, RunError
from rlskit.evaluation.subject import LIBRARIES
from rlskit.files import write_text
from rlskit.recipes.checking import check_options
from rlskit.recipes.recipe import Recipe, load, nearest
from rlskit.recipes.stages import Stage, sha256
from rlskit.recipes.table import markdown
from rlskit.recipes.trust import require_trust

Execute = Callable[[list[str]], int]
"""Runs one command line of rlskit, without the word `rlskit`; returns its exit code."""

Check = Callable[[list[str]], None]
"""Raises `RequestError` where a command line is none that rlskit understands."""

GATE = 1
"""Exit code of a command that is finished but for a gate that was not met."""


class StageError(RunError):
    """A stage failed; it carries the exit code of the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Outcome:
    """What a run of a recipe ended with.

    Attributes:
        recipe: What was run.
        folder: Where everything is.
        code: 0, or 1 where a stage's gate was not met.
    """

    recipe: Recipe
    folder: Path
    code: int


def run(
    path: str | Path,
    *,
    execute: Execute,
    check: Check | None = None,
    sets: Sequence[str] = (),
    only: str | None = None,
    out: str | Path | None = None,
    trust: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run a recipe; a second run of the same goes on where the first one ended.

    A stage whose fingerprint is that of its last finished run, and whose output is there, is
    skipped. One that was interrupted is continued by its command; any other starts afresh.

    Args:
        path: The TOML file.
        execute: Runs one command line.
        check: Looks at every command line before the first one runs.
        sets: `KEY=VALUE` changes.
        only: A stage, or a glob over their names: `rls/pgd`, `rls/*`.
        out: Folder of the run; by default `default_folder`.
        trust: Run the code that the recipe names; without it, only what `sets` names.
        note: Told what happens, a line at a time.

    Raises:
        RequestError: The recipe, a change, `only` or the folder is wrong, or the recipe names code
            and is not trusted.
        StageError: A command failed or was interrupted; what is finished is kept.
    """
    recipe = load(path, sets)
    require_trust(recipe, trust)
    folder = default_folder(recipe) if out is None else Path(out)
    check_stages(recipe, folder, check)
    chosen = select(recipe, only)
    _claim(folder)
    codes = [0]
    for number, stage in enumerate(chosen, 1):
        if is_finished(stage, folder):
            note(f"[{number}/{len(chosen)}] {stage.name}: up to date")
            codes.append(_state(stage, folder).get("code", 0))
            continue
        if stage.needs is not None and not is_finished(stage.needs, folder):
            raise RequestError(
                f"the stage {stage.name} needs {stage.needs.name}, which is not finished or has "
                f"changed; run that too, as with --only '{Path(stage.name).parent}/*'"
            )
        note(f"[{number}/{len(chosen)}] {stage.name}: {command_line(stage, folder)}")
        codes.append(_run_stage(stage, folder, execute))
    write_text(folder / "table.md", markdown(recipe, folder, is_finished), force=True)
    return Outcome(recipe, folder, max(codes))


def default_folder(recipe: Recipe) -> Path:
    """Return `runs/FOLDER-FILE`, so that recipes/small/x.toml and recipes/paper/x.toml differ."""
    return Path("runs") / f"{recipe.path.resolve().parent.name}-{recipe.path.stem}"


def command_line(stage: Stage, folder: Path) -> str:
    """Return a stage as it would be typed."""
    return shlex.join(["rlskit", *stage.arguments(folder)])


def check_stages(recipe: Recipe, folder: Path, check: Check | None) -> None:
    """Have every command line, and what the attacks make of theirs, checked.

    Raises:
        RequestError: One is wrong; the message names the stage.
    """
    for stage in recipe.stages:
        try:
            if check is not None:
                check(stage.arguments(folder))
            check_options(stage)
        except RequestError as error:
            raise RequestError(f"{recipe.path}: stage {stage.name}: {error}") from error


def select(recipe: Recipe, only: str | None) -> list[Stage]:
    """Return the stages whose names match.

    Raises:
        RequestError: None does.
    """
    if only is None:
        return list(recipe.stages)
    chosen = [stage for stage in recipe.stages if fnmatch.fnmatchcase(stage.name, only)]
    if not chosen:
        hint = nearest(only, [stage.name for stage in recipe.stages])
        raise RequestError(f"--only {only!r} matches no stage; {hint}")
    return chosen


def is_finished(stage: Stage, folder: Path) -> bool:
    """Whether the stage need not run: it did, just so, on the same input; its output is there."""
    state, mark = _state(stage, folder), _mark(stage, folder)
    unchanged = {name: state.get(name) for name in mark} == mark
    return bool(unchanged and state.get("finished") and (folder / stage.output).is_file())


def _mark(stage: Stage, folder: Path) -> dict[str, str | None]:
    """Return what decides a stage's output: its fingerprint, and the digest of what it takes."""
    taken = None if stage.needs is None else folder / stage.needs.output
    digest = sha256(taken) if taken is not None and taken.is_file() else None
    return {"fingerprint": stage.fingerprint(), "input": digest}


def _surroundings(stage: Stage) -> dict[str, str]:
    """Return what must be the same for an interrupted attack to go on: results depend on it."""
    versions = {name: version(name) for name in LIBRARIES}
    device = choose_device(str(stage.options.get("device", "auto"))).type
    return {**versions, "threads": str(torch.get_num_threads()), "device": device}


def _run_stage(stage: Stage, folder: Path, execute: Execute) -> int:
    """Run one stage and note that it is finished; return 0, or 1 for a gate that was not met.

    Raises:
        StageError: The command failed.
    """
    mark, output = {**_mark(stage, folder), "with": _surroundings(stage)}, folder / stage.output
    state = _state(stage, folder)
    if {name: state.get(name) for name in mark} != mark:
        _set_aside(stage, folder)  # another run's
    output.unlink(missing_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    _note_state(stage, folder, **mark, finished=False)
    start = time.perf_counter()
    code = execute(stage.arguments(folder))
    _settle(stage, folder, refused=code == RequestError.exit_code, state=state)
    if code not in (0, GATE):
        what = "was interrupted" if code >= 128 else f"failed with exit code {code}"
        raise StageError(
            f"the stage {stage.name} {what}; what is finished is kept in {folder}, and the same "
            "`rlskit run` goes on from there",
            code,
        )
    seconds = round(time.perf_counter() - start, 1)
    _note_state(stage, folder, **mark, finished=True, code=code, seconds=seconds)
    return code


def _set_aside(stage: Stage, folder: Path) -> None:
    """Move away what another version of a stage left, blocks of an unfinished attack included."""
    left = _left(stage, folder)
    shutil.rmtree(_aside(stage, folder), ignore_errors=True)
    if left.exists():
        _aside(stage, folder).mkdir()
        left.rename(_aside(stage, folder) / left.name)


def _settle(stage: Stage, folder: Path, *, refused: bool, state: dict[str, Any]) -> None:
    """Drop what was set aside; or put it back, where the command refused the new request."""
    left = _left(stage, folder)
    before = _aside(stage, folder) / left.name
    if refused and before.exists():
        if left.is_dir():
            shutil.rmtree(left)
        before.rename(left)
        _note_state(stage, folder, **state)
    shutil.rmtree(_aside(stage, folder), ignore_errors=True)


def _left(stage: Stage, folder: Path) -> Path:
    """Return all that a stage writes: a cell's folder, or a model's file."""
    cell = stage.output.name == "results.json"
    return folder / (stage.output.parent if cell else stage.output)


def _aside(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name.replace('/', '.')}.before"


def _claim(folder: Path) -> None:
    """Require a folder that is new, empty, or of a recipe's run.

    Raises:
        RequestError: It holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; --out names the folder of a recipe's run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "stages").is_dir():
        raise RequestError(f"{folder} holds something else than a recipe's run; name another --out")
    (folder / "stages").mkdir(parents=True, exist_ok=True)


def _state_file(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name.replace('/', '.')}.json"


def _state(stage: Stage, folder: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state_file(stage, folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # never begun, or torn
    return state if isinstance(state, dict) else {}


def _note_state(stage: Stage, folder: Path, **state: object) -> None:
    write_text(_state_file(stage, folder), json.dumps(state) + "\n", force=True)
