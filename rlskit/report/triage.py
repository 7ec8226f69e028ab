"""Which images newly fall against a baseline, for people who will look at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlskit.report.reported import Row
from rlskit.results.comparison import Comparison, Fallen
from rlskit.results.words import attack_label

SHOWN = 10
"""Images that a terminal lists."""

LISTED = 200
"""Images that Markdown and the page list of each measurement."""


@dataclass(frozen=True)
class Triage:
    """What newly fell in one measurement.

    Attributes:
        about: The measurement and its number.
        count: How many images fell.
        images: The first of them.
    """

    about: str
    count: int
    images: tuple[Fallen, ...]

    @property
    def heading(self) -> str:
        """How many fell where."""
        return f"{self.about}: {self.count:,} image{'s'[: self.count != 1]} newly fall"

    @property
    def rest(self) -> str:
        """How many are not listed; empty where all are."""
        left = self.count - len(self.images)
        return f"and {left:,} more" if left else ""


def triage(rows: Sequence[Row]) -> tuple[Triage, ...]:
    """Return what fell in each measurement that was held against a baseline, if anything did."""
    return tuple(
        Triage(f"{row.name}/{cell.column} ({cell.show})", len(cell.fallen), cell.fallen[:LISTED])
        for row in rows
        for cell in row.cells
        if cell.fallen
    )


def fallen_lines(comparison: Comparison) -> Iterator[str]:
    """Yield lines on what is right in A and not in B, of each attack and accuracy."""
    for pair in comparison.pairs:
        for kind, found in pair.differences.items():
            attack = f" under {attack_label(pair.b)}" if kind == "robust" and pair.b.attack else ""
            if not found.fallen:
                continue
            one = Triage(f"{kind}{attack}", len(found.fallen), found.fallen[:SHOWN])
            yield f"{one.heading} (right in A, not in B)"
            yield from (f"  {image.sentence}" for image in one.images)
            if one.rest:
                yield f"  {one.rest}, which the JSON names"
