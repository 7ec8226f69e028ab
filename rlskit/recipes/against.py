"""A run beside its baseline, cell by cell: for gates on a drop, and for which images newly fall.

Without such a gate what cannot be compared is left out, and it is said why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlskit.errors import RequestError
from rlskit.recipes.baseline import baseline_folder, cell_of
from rlskit.recipes.cells import Cell
from rlskit.results import Result, compare
from rlskit.results.comparison import Fallen, Pair
from rlskit.results.finished import KINDS
from rlskit.results.verdict import require_one_protocol


@dataclass(frozen=True)
class Beside:
    """The cells of a run beside the baseline's.

    Attributes:
        pairs: `ROW/COLUMN` -> the baseline's result and the run's.
        left_out: `ROW/COLUMN` -> why there is no pair.
        fallen: `ROW/COLUMN` -> the images that newly fall in the number that it shows.
    """

    pairs: Mapping[str, Pair]
    left_out: Mapping[str, str]
    fallen: Mapping[str, Sequence[Fallen]]

    @property
    def sentences(self) -> Iterator[str]:
        """Yield how many images newly fall where, and why what is not compared, for people."""
        for name, images in self.fallen.items():
            if images:
                many = f"{len(images):,} image{'s'[: len(images) != 1]}"
                yield f"{name}: {many} newly fall against the baseline, named in the report"
        for name, why in self.left_out.items():
            yield f"{name} is not held against the baseline: {why}"


NOTHING = Beside({}, {}, {})


def beside(
    lines: Sequence[Sequence[Cell]], folder: Path, baseline: Path | None, needed: Collection[str]
) -> Beside:
    """Hold every measured cell that shows clean or robust accuracy against the baseline's.

    Args:
        lines: The cells, a list per row.
        folder: Of the run.
        baseline: Of the recipe; None for no pairs.
        needed: Each `ROW/COLUMN` of which a drop is asked for.

    Raises:
        RequestError: A needed cell cannot be compared, or nothing of the baseline can be read.
    """
    pairs, left_out, fallen = {}, {}, {}
    with baseline_folder(baseline) as before:
        for cell in (cell for line in lines for cell in line):
            if before is None or cell.result is None or cell.column.show not in KINDS:
                continue
            try:
                pairs[cell.name] = pair = _pair(before, folder, cell, cell.result)
                fallen[cell.name] = pair.differences[cell.column.show].fallen
            except RequestError as error:
                if cell.name in needed:
                    raise
                left_out[cell.name] = str(error)
    return Beside(pairs, left_out, fallen)


def _pair(before: Path, folder: Path, cell: Cell, result: Result) -> Pair:
    """Return a cell's own result beside the baseline's of the same attack or attacks.

    Raises:
        RequestError: The baseline has none, or under another protocol; or more or fewer draws of
            the same defense answered.
    """
    row, column = cell.row.name, cell.column.name
    found = compare(cell_of(before, row, column), folder / row / column)
    for pair in found.pairs:
        if pair.b != result:  # of some of its attacks, which say less
            continue
        require_one_protocol(pair, cell.name)
        if pair.a.defense == pair.b.defense and pair.a.n_samples != pair.b.n_samples:
            raise RequestError(
                f"in {cell.name} {pair.b.n_samples} draws answered together, in the baseline's "
                f"{pair.a.n_samples}: what they differ in is not the model; run the same for it"
            )
        return pair
    raise RequestError(
        f"the baseline's {cell.name} has no result of the same attacks "
        f"({'; '.join(found.left_out)}); run the same columns for it"
    )
