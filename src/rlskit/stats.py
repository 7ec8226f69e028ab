"""Statistics: intervals to read, and the lower bound that a gate uses.

Images and draws are never pooled: `n` is always the number of images, and repeats (fresh attacker's
views and defender's draws on the same images) only enter through their mean and their spread.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlskit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Accuracy:
    """An accuracy over `n` images, with how far it can be trusted; all shares lie in [0, 1].

    Attributes:
        mean: Mean over the repeats.
        std: Sample standard deviation over the repeats; None for one repeat, which shows no spread.
        ci95: Wilson 95 % interval over images, to read.
        n: Number of images: the denominator.
        lower_bound: One-sided 95 % bound, for gates (see `lower_bound`).
    """

    mean: float
    std: float | None
    ci95: tuple[float, float]
    n: int
    lower_bound: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "ci95": list(self.ci95)}


def accuracy(per_repeat: Sequence[float], n: int) -> Accuracy:
    """Summarise one accuracy in [0, 1] per repeat, each over the same `n` images.

    Raises:
        RequestError: No repeat, no image, or a value outside [0, 1].
    """
    mean = _mean(per_repeat, n)
    return Accuracy(
        mean=mean,
        std=statistics.stdev(per_repeat) if len(per_repeat) > 1 else None,
        ci95=wilson(mean * n, n),
        n=n,
        lower_bound=lower_bound(per_repeat, n),
    )


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's two-sided score interval for a share of `n` images.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286.

    Args:
        successes: In [0, n]; fractional where it is a mean over repeats.
        n: Number of images.
        confidence: In (0, 1).

    Raises:
        RequestError: An argument is out of range.
    """
    _check_counts(n, confidence)
    if not 0 <= successes <= n:
        raise RequestError(f"{successes} successes among {n} images are impossible; give 0 to {n}")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # the interval contains the share; rounding must not say otherwise at 0 and 1
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def lower_bound(per_repeat: Sequence[float], n: int, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of an accuracy in [0, 1], as a gate uses it.

    It is the lower of two bounds. Over images: Clopper and Pearson's (1934) at the mean accuracy,
    continued to a fractional number of successes by its beta quantile. Over repeats, where there
    are at least two: Student's t bound of their mean.

    Args:
        per_repeat: One accuracy in [0, 1] per repeat, each over the same `n` images.
        n: Number of images.
        confidence: In (0, 1).

    Raises:
        RequestError: No repeat, no image, or a value out of range.
    """
    from scipy.stats import beta, t

    mean = _mean(per_repeat, n)
    _check_counts(n, confidence)
    successes = mean * n
    bound = float(beta.ppf(1 - confidence, successes, n - successes + 1)) if successes > 0 else 0.0
    repeats = len(per_repeat)
    if repeats > 1:
        error = statistics.stdev(per_repeat) / math.sqrt(repeats)
        bound = min(bound, mean - float(t.ppf(confidence, repeats - 1)) * error)
    return max(0.0, bound)


def _mean(per_repeat: Sequence[float], n: int) -> float:
    """Return the mean over repeats of accuracies that were checked to be such."""
    if n < 1:
        raise RequestError(f"an accuracy needs at least one image, not {n}")
    if not per_repeat:
        raise RequestError("an accuracy needs at least one repeat")
    if not all(0 <= value <= 1 for value in per_repeat):  # NaN fails it, too
        raise RequestError(f"accuracies must lie in [0, 1], not {list(per_repeat)}")
    return statistics.fmean(per_repeat)


def _check_counts(n: int, confidence: float) -> None:
    """Require an image and a confidence strictly between 0 and 1."""
    if n < 1:
        raise RequestError(f"an interval needs at least one image, not {n}")
    if not 0 < confidence < 1:
        raise RequestError(f"confidence must lie between 0 and 1, not {confidence}; write 0.95")
