"""How a long step tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a long step is: `done` of `total`, and facts worth showing beside the bar."""

    def __call__(self, step: str, done: int, total: int, **facts: float) -> None:
        """Note the progress of `step`."""
        ...


def no_progress(step: str, done: int, total: int, **facts: float) -> None:
    """Ignore progress; the default of the library's long functions."""
