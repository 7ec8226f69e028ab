"""A budget of time: images are taken in a random order until the gates decide, or it is used up."""

from __future__ import annotations

from dataclasses import dataclass

from rlskit.results import Result
from rlskit.results.verdict import BOUND, UNDECIDED, judged


@dataclass(frozen=True)
class Budget:
    """How long a cell may take, and what decides before.

    Attributes:
        text: As it was given.
        seconds: The same as a number.
        show: The number that gates look at.
        asks: What they ask of it: `at-least` or `at-most`, and the threshold.
    """

    text: str
    seconds: float
    show: str
    asks: tuple[tuple[str, float], ...] = ()

    def is_decided(self, result: Result) -> bool:
        """Whether every gate has its verdict on these images; never where none asks for anything.

        Bounds of images in random order hold at every look (`rlskit.stats.anytime_bound`).
        """
        value = result.accuracy.get(self.show)
        if value is None:  # nothing that more images would mend
            return True
        place = {"row": "", "column": "", "show": self.show, "by": BOUND}
        found = [
            judged(value, images=int(value.n), asked=asked, threshold=threshold, **place)
            for asked, threshold in self.asks
        ]
        return bool(found) and all(one.verdict != UNDECIDED for one in found)
