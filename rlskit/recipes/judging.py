"""What became of a recipe's gates, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlskit.recipes.baseline import baseline_folder, cell_of
from rlskit.recipes.cells import Cell
from rlskit.recipes.gates import MAX_DROP, Gate
from rlskit.results import compare
from rlskit.results.verdict import UNTRUSTED, Verdict, judged


def verdicts(
    gates: Sequence[Gate],
    lines: Sequence[Sequence[Cell]],
    *,
    folder: Path,
    baseline: Path | None,
    untrusted: Mapping[str, str],
) -> tuple[Verdict, ...]:
    """Return what became of all that is asked of cells that were measured.

    Args:
        gates: Of the recipe.
        lines: Its cells, a list per row.
        folder: Of the run.
        baseline: What `max-drop` is held against.
        untrusted: `ROW/COLUMN` -> why its number means nothing.

    Raises:
        RequestError: The baseline lacks a cell, or was measured on other images.
    """
    found: list[Verdict] = []
    with baseline_folder(baseline) as before:
        for cell in (cell for line in lines for cell in line):
            for gate in gates:
                if gate.is_about(cell.row.name, cell.column.name):
                    found += _of_cell(gate, cell, folder, before, untrusted)
    return tuple(found)


def _of_cell(
    gate: Gate, cell: Cell, folder: Path, before: Path | None, untrusted: Mapping[str, str]
) -> Iterator[Verdict]:
    """Yield what became of all that a gate asks of a cell, if it was measured."""
    row, column = cell.row.name, cell.column.name
    place: dict[str, Any] = {"row": row, "column": column, "show": cell.column.show}
    why = untrusted.get(f"{row}/{column}")
    for asked, threshold in gate.asks.items():
        if why is not None:
            yield Verdict(
                **place, asked=asked, threshold=threshold, by=gate.by, verdict=UNTRUSTED, reason=why
            )
        elif cell.result is not None:
            value: Any = cell.value
            if asked == MAX_DROP:
                assert before is not None
                pair = compare(cell_of(before, row, column), folder / row / column).pairs[-1]
                value = pair.differences[cell.column.show]
            yield judged(
                value, images=int(cell.result.data.n), asked=asked, threshold=threshold, by=gate.by,
                **place,
            )  # fmt: skip
