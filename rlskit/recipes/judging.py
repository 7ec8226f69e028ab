"""What became of a recipe's gates, cell by cell."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rlskit.recipes.cells import Cell
from rlskit.recipes.gates import MAX_DROP, Gate
from rlskit.results.comparison import Pair
from rlskit.results.verdict import UNDECIDED, UNTRUSTED, Verdict, dropped, judged
from rlskit.stats import Accuracy

NOT_MEASURED, NOT_AUDITED = "not measured", "its attack is not audited yet"
"""The reasons of a verdict on a cell that has no number yet, or no audit."""


NO_BUDGET: Mapping[str, str] = MappingProxyType({})


def verdicts(
    gates: Sequence[Gate],
    lines: Sequence[Sequence[Cell]],
    *,
    stages: Collection[str],
    pairs: Mapping[str, Pair],
    untrusted: Mapping[str, str],
    unaudited: Collection[str] = (),
    over: Mapping[str, str] = NO_BUDGET,
) -> tuple[Verdict, ...]:
    """Return what became of all that is asked of the cells that a recipe measures.

    A cell that is not measured is undecided: no gate may pass unseen.

    Args:
        gates: Of the recipe.
        lines: Its cells, a list per row.
        stages: The names of its stages; a cell without one is none that its row measures.
        pairs: `ROW/COLUMN` -> the baseline's result and the cell's, of all that `max-drop` is of.
        untrusted: `ROW/COLUMN` -> why its number means nothing.
        unaudited: Each `ROW/COLUMN` whose audit is asked for, and not finished.
        over: `ROW/COLUMN` -> the budget of time that it used up.
    """
    found: list[Verdict] = []
    for cell in (cell for line in lines for cell in line):
        for gate in gates:
            if cell.name in stages and gate.is_about(cell.row.name, cell.column.name):
                missing = NOT_AUDITED if cell.name in unaudited else ""
                pair, why = pairs.get(cell.name), untrusted.get(cell.name)
                own = _of_cell(gate, cell, pair, why, missing)
                found += (_without_time(one, over.get(cell.name)) for one in own)
    return tuple(found)


def _without_time(one: Verdict, budget: str | None) -> Verdict:
    """Return a verdict that says where it is undecided because the time was used up."""
    if budget is None or one.verdict != UNDECIDED or one.reason:
        return one
    return replace(one, reason=f"its budget of {budget} is used up")


def _of_cell(
    gate: Gate, cell: Cell, pair: Pair | None, why: str | None, missing: str
) -> Iterator[Verdict]:
    """Yield what became of all that a gate asks of a cell."""
    place = {"row": cell.row.name, "column": cell.column.name}
    show, value, result = cell.column.show, cell.value, cell.result
    if result is not None and value is None:
        why = why or f"the run has no number called {show}"
    for asked, threshold in gate.asks.items():
        about: dict[str, Any] = {"asked": asked, "threshold": threshold, "by": gate.by, **place}
        if why is not None:
            yield Verdict(**about, show=show, verdict=UNTRUSTED, reason=why)
        elif result is None or value is None:
            yield Verdict(**about, show=show, verdict=UNDECIDED, reason=NOT_MEASURED)
        elif missing:
            yield Verdict(**about, show=show, verdict=UNDECIDED, reason=missing)
        elif asked == MAX_DROP:
            assert pair is not None
            yield dropped(pair, show, most=threshold, by=gate.by, **place)
        else:
            images = value.n if isinstance(value, Accuracy) else int(result.data.n)
            yield judged(value, **about, images=images, show=show)
