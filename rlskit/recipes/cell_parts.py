"""A cell that several shards share: each does its part, and whoever is there last merges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlskit.errors import RequestError, RunError
from rlskit.recipes.noted import (
    NEW,
    discard,
    failure,
    how,
    mark_of,
    note_stage,
    state_of,
    surroundings,
)
from rlskit.recipes.stages import Stage, option_words
from rlskit.runtime.sharding import Shard
from rlskit.storage.locks import refuse_busy

SHARDS, DONE = "shards", "done"
"""What is noted of a cell that shards share: how many they are, and which ones did their part."""

_OF_THE_WHOLE = ("fail-under", "per-image")
"""Options of a cell that a shard of it does not have."""


def begin_part(stage: Stage, folder: Path, shard: Shard) -> dict[str, Any]:
    """Make room for a shard's part of a cell beside the others' parts; return what is noted of it.

    Raises:
        RequestError: What it would replace is not the recipe's, or shards did some of it elsewhere.
        RunError: Shards of another recipe, or of another model, are at work there.
    """
    new, state, mark = folder / NEW, *found(stage, folder)
    if {name: state.get(name) for name in mark} != mark:
        assert stage.cell is not None
        refuse_busy(new / stage.cell, parts=True)
        discard(stage, new)
    elif state.get("finished") or is_whole(state) or state.get(SHARDS) == shard.count:
        return state
    (new / stage.output).parent.mkdir(parents=True, exist_ok=True)
    state = {**mark, "finished": False, SHARDS: shard.count, DONE: []}
    note_stage(stage, new, **state)
    return state


def part_line(stage: Stage, folder: Path, shard: Shard) -> list[str]:
    """Return the command line of a shard's part of a cell; what is of the whole is `merge`'s."""
    options = {name: one for name, one in stage.options.items() if name not in _OF_THE_WHOLE}
    line = replace(stage, options=options).arguments(folder, folder / NEW)
    return [*line, "--shard", str(shard)]


def end_part(stage: Stage, folder: Path, shard: Shard, code: int) -> dict[str, Any]:
    """Note that a shard did its part of a cell; return what is noted of it.

    Args:
        stage: The cell.
        folder: Of the run.
        shard: Which part.
        code: The command's exit code.

    Raises:
        StageError: The command failed, or its model changed meanwhile.
    """
    if code:
        raise failure(stage, folder, how(code), code)
    state = state_of(stage, folder / NEW)
    mark = mark_of(stage, folder)
    if {name: state.get(name) for name in mark} != mark or state.get(SHARDS) != shard.count:
        what = "was begun anew meanwhile, by another shard or for another model"
        raise failure(stage, folder, what, RunError.exit_code)
    state = {**state, DONE: sorted({*state[DONE], shard.index})}
    note_stage(stage, folder / NEW, **state)
    return state


def is_whole(state: Mapping[str, Any]) -> bool:
    """Whether what is noted of a cell says that all shards did their parts."""
    count = state.get(SHARDS)
    return isinstance(count, int) and count > 0 and state.get(DONE) == list(range(count))


def found(stage: Stage, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is noted of a stage that is not finished, and what would be of one begun now.

    What shards computed is merged anywhere, but gone on with only where they were.

    Raises:
        RequestError: What it would replace is not the recipe's, or shards did some of it elsewhere.
    """
    _refuse_foreign(stage, folder)
    state, mark = state_of(stage, folder / NEW), mark_of(stage, folder)
    here = surroundings(stage)
    if state.get(SHARDS) and {name: state.get(name) for name in mark} == mark:
        there = state.get("with")
        if is_whole(state):
            return state, {**mark, "with": there}
        if there != here:
            raise RequestError(
                f"shards did some of the stage {stage.name} with {_words(there)}, and this is "
                f"{_words(here)}: go on as they did, with the same OMP_NUM_THREADS, or remove "
                f"{folder / NEW} to start afresh"
            )
    return state, {**mark, "with": here}


def _words(surroundings: Any) -> str:
    about = surroundings if isinstance(surroundings, dict) else {}
    return ", ".join(f"{name} {value}" for name, value in about.items())


def merging(stage: Stage, new: Path) -> list[str]:
    """Return the command line that makes the result of all shards' parts of a cell."""
    assert stage.cell is not None
    given = {name: one for name, one in stage.options.items() if name in _OF_THE_WHOLE}
    more = [word for name, value in given.items() for word in option_words(name, value)]
    return ["merge", str(new / stage.cell), *more]


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
