"""The gates of a recipe: what must hold of its cells.

[gates]
COLUMN = { at-least = 0.9 }                      at-most, max-drop (against the baseline); by, rows
[baseline]
results = "last-release"                         a run of the recipe, or a file of `rlskit baseline`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlskit.errors import RequestError
from rlskit.results.verdict import ASKS, BOUND, POINT, SIGNED

MAX_DROP = "max-drop"


@dataclass(frozen=True)
class Gate:
    """What must hold of a column.

    Attributes:
        column: Its name.
        asks: One of `ASKS` -> its threshold.
        by: `bound` or `point`.
        rows: The rows it is about; none for all.
    """

    column: str
    asks: Mapping[str, float]
    by: str = BOUND
    rows: tuple[str, ...] = ()

    def is_about(self, row: str, column: str) -> bool:
        """Whether it asks something of a cell."""
        return self.column == column and (not self.rows or row in self.rows)


def read_gates(
    table: Mapping[str, Any], rows: Sequence[str], columns: Mapping[str, str], where: str
) -> tuple[Gate, ...]:
    """Return the gates of `[gates]`.

    Args:
        table: Column -> what is asked of it.
        rows: The names of all rows.
        columns: Column -> the number that it shows.
        where: What the table is called in messages.

    Raises:
        RequestError: One is about no column or row, or asks for what cannot be.
    """
    found = []
    for column, asked in table.items():
        place = f"{where}: gates.{column}"
        if column not in columns:
            raise RequestError(f"{place} is no column; it is one of {', '.join(columns)}")
        if not isinstance(asked, Mapping):
            raise RequestError(f"{place} is a table, such as {{ at-least = 0.4 }}, not {asked!r}")
        about = asked.get("rows", [])
        if not isinstance(about, list) or not all(one in rows for one in about):
            raise RequestError(f"{place}: rows is a list of some of {', '.join(rows)}")
        by = asked.get("by", BOUND)
        if by not in (BOUND, POINT):
            raise RequestError(f"{place}: by is {BOUND} or {POINT}, not {by!r}")
        asks = {name: one for name, one in asked.items() if name not in ("rows", "by")}
        found.append(
            Gate(column, _checked(asks, place, columns[column] in SIGNED), by, tuple(about))
        )
    return tuple(found)


def _checked(asks: Mapping[str, Any], place: str, signed: bool) -> dict[str, float]:
    """Require that what a gate asks for can be.

    Raises:
        RequestError: It cannot.
    """
    if not asks:
        raise RequestError(f"{place} asks for nothing; give it {', '.join(ASKS)}")
    for name, one in asks.items():
        if name not in ASKS:
            raise RequestError(f"{place}: {name!r} is unknown; it is one of {', '.join(ASKS)}")
        lowest = -1 if signed and name != MAX_DROP else 0
        if isinstance(one, bool) or not isinstance(one, int | float) or not lowest <= one <= 1:
            raise RequestError(f"{place}: {name} is a share such as 0.4 (of 1, not of 100)")
        if name != "at-least" and one == 1:
            raise RequestError(
                f"{place}: {name} = 1 is 100 %, and always holds; one point of 100 is 0.01"
            )
    return {name: float(one) for name, one in asks.items()}
