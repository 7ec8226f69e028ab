"""What a check measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """What a check measured.

    Attributes:
        value: In the check's unit; None where nothing was measured.
        failed: Whether it is beyond the threshold, and beyond chance.
        detail: The numbers behind it, or why there are none.
        skipped: Whether there was nothing to measure.
        meaning: What a failure means, where it is not what the check usually says.
    """

    value: float | None
    failed: bool
    detail: str
    skipped: bool = False
    meaning: str = ""

    @classmethod
    def skip(cls, reason: str) -> Measurement:
        """Return that there was nothing to measure."""
        return cls(None, False, reason, skipped=True)
