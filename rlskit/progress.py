"""How a long step tells how far it is."""

from __future__ import annotations

from typing import Protocol

PART = "part: "
"""Begins a step that is one of several on the block at hand, of which `done` are begun."""


class Progress(Protocol):
    """Told how far a long step is: `done` of `total`, and facts worth showing beside it.

    The fact `share`, in [0, 1], is what is done of all, where the step is but one of several.
    """

    def __call__(self, step: str, done: int, total: int, **facts: float) -> None:
        """Note the progress of `step`."""
        ...


def no_progress(step: str, done: int, total: int, **facts: float) -> None:
    """Ignore progress; the default of the library's long functions."""
