"""Looks at more and more images of one cell: each an ordinary run that keeps what is done.

A look is at one block, then two, four, and so on, as far as the time goes. When it is looked, and
when it ends, may depend on what was seen: the bounds hold at every number of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlskit.recipes.stages import Stage
from rlskit.results import Result, read_results

LASTING = ("look", "spent")
"""What is noted of an unfinished stage, and goes on: images of the last look, seconds of all."""

DECIDED, OVER, ALL = "decided", "over", "all images"
"""How the looks ended: the gates decided, the time is used up, or there are no more images."""


def take(
    stage: Stage,
    folder: Path,
    new: Path,
    execute: Callable[[list[str]], int],
    note: Callable[..., None],
    noted: Mapping[str, Any],
) -> int:
    """Look until something ends it; return the exit code of the last command.

    Args:
        stage: A cell with a budget.
        folder: Of the run, where its model is.
        new: What the cell is written below.
        execute: Runs one command line.
        note: Keeps `LASTING` and, at last, how it `ended`.
        noted: What it kept of an interrupted run, or of one with another budget.
    """
    assert stage.budget is not None
    file, start = new / stage.output, time.perf_counter()
    look, before = int(noted.get("look", stage.options["batch-size"])), noted.get("spent", 0.0)
    while True:
        file.unlink(missing_ok=True)
        note(look=look, spent=before + time.perf_counter() - start)
        code = execute(limited(stage, look).arguments(folder, new))
        spent = before + time.perf_counter() - start
        note(look=look, spent=spent)
        if code:
            return code
        result = read_results(file)[-1]
        spent = max(spent, result.timing.seconds)  # also of blocks before a kill
        ended = _end(stage, result, look)
        more = 0 if ended else _affordable(stage, look, spent)
        if not more:
            note(look=look, spent=spent, ended=ended or OVER)
            return code
        look += more


def limited(stage: Stage, images: int) -> Stage:
    """Return the stage with at most so many images, and no more than it takes anyway."""
    most = stage.options.get("limit")
    least = images if most is None else min(images, int(most))
    return replace(stage, options={**stage.options, "limit": str(least)})


def taken(result: Result) -> int:
    """Return how many images a look was at, those that could not be read included."""
    return int(result.data.n + (result.data.skipped or 0))


def _end(stage: Stage, result: Result, look: int) -> str:
    """Return what ends the looks after this one; empty where nothing but time can."""
    assert stage.budget is not None
    if stage.budget.is_decided(result):
        return DECIDED
    most = stage.options.get("limit")
    return ALL if taken(result) < look or str(look) == most else ""


def _affordable(stage: Stage, look: int, spent: float) -> int:
    """Return how many more images the rest of the time allows, at most as many again."""
    assert stage.budget is not None
    block = int(stage.options["batch-size"])
    left = int((stage.budget.seconds - spent) / (spent / look) / block)
    return block * max(0, min(look // block, left))
