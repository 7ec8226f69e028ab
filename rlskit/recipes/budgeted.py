"""The cells of a recipe that have a budget of time.

[columns.linf]
attack = { protocol = "adaptive", eps = "4/255" }
budget = "20 min"                                 a number with s, min or h
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rlskit.errors import RequestError
from rlskit.recipes.gates import MAX_DROP, Gate
from rlskit.recipes.stages import Stage
from rlskit.recipes.time_budget import Budget
from rlskit.results.verdict import BOUND

BLOCK = "50"
"""Images of a block where the column says nothing: the first look is at one."""

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}

_REFUSED = {
    "abstain": "an attacker of its own, which it does not bound",
    "adversarial": "saved images, which cost no time",
    "fail-under": "a gate of the command's own; ask by [gates]",
    "shuffle": "an order of the images, which it takes itself",
}
"""Options that a budget does not go with, and what they are."""


def with_budgets(
    stages: Iterable[Stage],
    columns: Mapping[str, Mapping[str, Any]],
    shows: Mapping[str, str],
    gates: Iterable[Gate],
    where: str,
) -> list[Stage]:
    """Return the stages, those of columns with a budget told of it.

    Args:
        stages: Of a recipe.
        columns: Its columns as they stand in the file.
        shows: Column -> the number that it shows.
        gates: What must hold.
        where: What the recipe is called in messages.

    Raises:
        RequestError: A budget is none, or of something that cannot be stopped when one likes.
    """
    given, found = list(gates), []
    for stage in stages:
        row, _, column = stage.name.partition("/")
        text = columns.get(column, {}).get("budget", False)
        if text is False or stage.cell is None:
            found.append(stage)
            continue
        place = f"{where}: columns.{column}: budget"
        seconds = _seconds(text, place)
        own = [gate for gate in given if gate.is_about(row, column)]
        _check(stage, own, place)
        asks = tuple(ask for gate in own for ask in gate.asks.items())
        options = {"batch-size": BLOCK, **stage.options, "shuffle": True}
        budget = Budget(str(text), seconds, shows[column], asks)
        found.append(replace(stage, options=options, budget=budget))
    return found


def _seconds(text: Any, place: str) -> float:
    """Return a time in seconds.

    Raises:
        RequestError: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text) if isinstance(text, str) else None
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < 1e9:
        raise RequestError(f'{place} is a time such as "20 min", "90 s" or "2 h", not {text!r}')
    return seconds


def _check(stage: Stage, gates: Iterable[Gate], place: str) -> None:
    """Require a cell that may be stopped at any image, and gates that allow for it.

    Raises:
        RequestError: It is none, or one of them does not.
    """
    if stage.command == "diversity":
        raise RequestError(f"{place} is of an attack or eval, and this column is diversity")
    for name, what in _REFUSED.items():
        if stage.options.get(name, False) is not False:
            raise RequestError(f"{place} does not go with {name}, {what}")
    if stage.options.get("repeats", "1") != "1":
        raise RequestError(
            f"{place} takes one repeat: nothing bounds the spread over repeats where one stops "
            "when one likes; leave repeats or budget out"
        )
    for gate in gates:
        if MAX_DROP in gate.asks:
            raise RequestError(
                f"{place} does not go with {MAX_DROP}, whose bound is of as many images as the "
                "baseline has; give the column a limit, and no budget"
            )
        if gate.by != BOUND:
            raise RequestError(f"{place} needs gates by {BOUND}: a {gate.by} decides at once")
