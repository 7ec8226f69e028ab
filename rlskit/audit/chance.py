"""When a difference is more than chance: a verdict needs that and its threshold."""

from __future__ import annotations

from torch import Tensor

from rlskit.stats import clearly_more_than, mcnemar

__all__ = ["ALPHA", "A_FEW", "clearly_above", "clearly_more_than", "points"]

ALPHA = 0.05
"""Probability that chance alone does it."""

A_FEW = 0.01
"""Share of images that a check which allows none forgives: those that lie on the boundary."""


def points(first: Tensor, second: Tensor) -> float:
    """Return the accuracy of the first, bool `[n]`, minus that of the second, in points."""
    return 100 * int(first.sum() - second.sum()) / len(first)


def clearly_above(first: Tensor, second: Tensor, threshold: float) -> bool:
    """Say whether the first is right on more of the same images, bool `[n]`.

    By more than `threshold` points, and by more than chance: McNemar's exact test, one-sided.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    unlikely = mcnemar(only_first, only_second) / 2 <= ALPHA
    return points(first, second) > threshold and only_first > only_second and unlikely
