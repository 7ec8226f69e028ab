"""Accuracy class by class, from the per-image tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from rlskit.errors import RequestError
from rlskit.report.reported import Row
from rlskit.results import Finished, read_answers
from rlskit.results.words import attack_label, seen

MOST = 50
"""Classes that a table shows; of more than that the worst."""


@dataclass(frozen=True)
class ClassShare:
    """How many images of a class were right.

    Attributes:
        label: Its number.
        images: How many there are.
        right: `clean` and `robust`, as far as they were scored -> the share in [0, 1], over images
            and repeats.
    """

    label: int
    images: int
    right: dict[str, float]


@dataclass(frozen=True)
class ClassTable:
    """The classes of one measurement, the worst first.

    Attributes:
        row: The model.
        measured: What was measured.
        shares: At most `MOST`.
        classes: How many there are.
    """

    row: str
    measured: str
    shares: tuple[ClassShare, ...]
    classes: int


def class_tables(rows: Sequence[Row]) -> tuple[ClassTable, ...]:
    """Return a table of every measurement whose per-image table is at hand."""
    found = []
    for row in rows:
        for cell in row.cells:
            for part in cell.parts:
                with suppress(RequestError):  # the table is damaged, or of another run
                    found.append(_table(row.label, part))
    return tuple(found)


def guessing(rows: Sequence[Row]) -> dict[str, float]:
    """Return the share of the most frequent class among images, by their digest."""
    found: dict[str, float] = {}
    for part in (part for row in rows for cell in row.cells for part in cell.parts):
        if part.result.data.sha256 not in found:
            with suppress(RequestError):
                labels = read_answers(part).label.tolist()
                most = Counter(labels).most_common(1)[0][1]
                found[part.result.data.sha256] = most / len(labels)
    return found


def _table(row: str, part: Finished) -> ClassTable:
    """Return the classes of a result.

    Raises:
        RequestError: Its per-image table is not there, damaged, or of another run.
    """
    answers, result = read_answers(part), part.result
    labels = np.unique(answers.label).tolist()
    shares = [
        ClassShare(
            label,
            int((answers.label == label).sum()),
            {
                kind: float(right[:, answers.label == label].mean())
                for kind, right in answers.right.items()
            },
        )
        for label in labels
    ]
    shares.sort(key=lambda share: share.right.get("robust", share.right.get("clean", 0.0)))
    how = f"{attack_label(result)}, {seen(result)}" if result.attack else "clean images"
    return ClassTable(row, how, tuple(shares[:MOST]), len(shares))
