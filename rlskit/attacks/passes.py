"""What an attack asks of a model: the words in which its file says what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Passes(NamedTuple):
    """Passes of a single draw that an attack asks for, per image and draw in the view.

    Attributes:
        forwards: Forward passes.
        backwards: Backward passes.
    """

    forwards: int
    backwards: int

    def and_then(self, other: Passes) -> Passes:
        """Return the passes of both."""
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards)


@dataclass(frozen=True)
class Setting:
    """What an attack is to be run on, as far as its cost depends on it.

    Attributes:
        shape: Of an image, `(C, H, W)`.
        classes: Number of classes.
        draws: In the attacker's view.
    """

    shape: tuple[int, int, int]
    classes: int
    draws: int = 1
