"""Statistics: intervals to read, the lower bound that a gate uses, and paired tests.

Images and draws are never pooled: `n` is always the number of images, and repeats (fresh attacker's
views and defender's draws on the same images) only enter through their mean and their spread. What
is resampled or flipped is an image with all its repeats.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rlskit.documents import Count, Number, Share, item
from rlskit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    """An accuracy over `n` images, with how far it can be trusted; all shares lie in [0, 1].

    Attributes:
        mean: Mean over the repeats.
        std: Sample standard deviation over the repeats; None for one repeat, which shows no spread.
        ci95: Wilson 95 % interval over images, to read; of images in random order see `anytime`.
        n: Number of images: the denominator.
        lower_bound: One-sided 95 % bound, for gates (see `lower_bound`).
        ci95_repeats: Student's t interval of the mean over repeats: how far other views and draws
            would move it on these same images; None for one repeat.
        upper_bound: One-sided 95 % bound from above, likewise; older results have none.
    """

    mean: Share
    std: Number | None
    ci95: tuple[Number, Number]
    n: Count
    lower_bound: Number
    ci95_repeats: tuple[Number, Number] | None
    upper_bound: Number = 1.0

    __getitem__ = item


@dataclass(frozen=True)
class Spread:
    """A number over repeats; None where it is undefined in one of them.

    Attributes:
        mean: Mean over the repeats.
        std: Sample standard deviation over the repeats; None for one repeat, too.
    """

    mean: Number | None
    std: Number | None

    __getitem__ = item


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
        ci95_repeats=t_interval(per_repeat) if len(per_repeat) > 1 else None,
        upper_bound=1 - lower_bound([1 - value for value in per_repeat], n),
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
    _check_counts(n, confidence, successes)
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


def anytime_bound(successes: float, n: int, confidence: float = 0.95) -> float:
    """Return a one-sided lower bound of a share in [0, 1] that holds at all n at once.

    However often one looks while images come in, in random order, and whenever one stops: the
    chance that any of these bounds is ever above the share is at most 1 - confidence.

    M(p) is the mean, over q uniform in [p, 1], of the likelihood of q divided by that of p. Where
    the share is p or less, it is a nonnegative supermartingale that starts at 1, so that it ever
    reaches 1 / (1 - confidence) with a chance of 1 - confidence at most (Ville 1939). The bound is
    the largest p for which it does; above successes / (n + 1) none does, and below M falls.

    Source: Robbins 1970, https://doi.org/10.1214/aoms/1177696786, whose mixture it is; Waudby-Smith
    and Ramdas 2024, https://doi.org/10.1093/jrsssb/qkad009, for fractional successes.

    Args:
        successes: In [0, n]; fractional where an image counts a share in [0, 1].
        n: Number of images.
        confidence: In (0, 1).

    Raises:
        RequestError: An argument is out of range.
    """
    from scipy.optimize import brentq
    from scipy.special import betainc, betaln

    _check_counts(n, confidence, successes)
    s, f = successes, n - successes

    def excess(p: float) -> float:
        mixed = betaln(s + 1, f + 1) + math.log1p(-betainc(s + 1, f + 1, p)) - math.log1p(-p)
        likelihood = s * math.log(p) + f * math.log1p(-p)
        return float(mixed - likelihood + math.log(1 - confidence))

    lowest, highest = 1e-12, s / (n + 1)
    if highest <= lowest or excess(lowest) <= 0:
        return 0.0
    return float(brentq(excess, lowest, highest))


def anytime(found: Accuracy) -> Accuracy:
    """Return an accuracy of one repeat with intervals that hold however often one looks at it.

    Its images are the first n in a random order; see `anytime_bound`.
    """
    right, n = found.mean * found.n, found.n
    wrong = n - right
    two_sided = anytime_bound(right, n, 0.975), 1 - anytime_bound(wrong, n, 0.975)
    return replace(
        found,
        ci95=two_sided,
        lower_bound=anytime_bound(right, n),
        upper_bound=1 - anytime_bound(wrong, n),
    )


def clearly_more_than(count: float, n: int, share: float, confidence: float = 0.95) -> bool:
    """Say whether `count` of `n` images leave more than `share` with confidence (Clopper-Pearson).

    Args:
        count: In [0, n]; fractional where it is a mean over repeats.
        n: Number of images; none leave nothing.
        share: In [0, 1].
        confidence: In (0, 1).
    """
    return n > 0 and lower_bound([count / n], n, confidence) > share


def guessed_share(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> float:
    """Return the share of images that guessing gets right, the largest of three.

    One class in `classes`; always the most frequent class, as far as so few labels show that it is
    one (its one-sided 95 % bound, corrected for the choice); and these very answers, dealt out to
    the images at random, which for a constant answer is its own score (the agreement by chance of
    Cohen 1960, https://doi.org/10.1177/001316446002000104).

    Args:
        labels: `[n]`, each in 0 .. classes - 1; at least one.
        answers: The predicted classes `[n]`.
        classes: Number of classes.
    """
    n = len(labels)
    given, answered = (np.bincount(one, minlength=classes) for one in (labels, answers))
    known = lower_bound([float(given.max()) / n], n, 1 - 0.05 / classes)
    return max(1 / classes, known, float(given @ answered) / n**2)


def t_interval(per_repeat: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's two-sided t interval for the mean of two or more shares, within [0, 1]."""
    from scipy.stats import t

    repeats, mean = len(per_repeat), statistics.fmean(per_repeat)
    error = statistics.stdev(per_repeat) / math.sqrt(repeats)
    half = float(t.ppf((1 + confidence) / 2, repeats - 1)) * error
    return max(0.0, mean - half), min(1.0, mean + half)


def mean_at_least(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Return the one-sided t bound that a mean lies above; None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - float(t.ppf(confidence, len(values) - 1)) * error


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    It is the sign test on the images that just one of two classifiers gets right: were both as
    good, each of these would fall to either side with probability 1/2.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996.

    Args:
        only_first: Images that only the first classifier gets right.
        only_second: Images that only the second gets right.
    """
    from scipy.stats import binom

    fewer, either = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * float(binom.cdf(fewer, either, 0.5)))


def sign_flip(differences: NDArray[np.int64]) -> float:
    """Return the two-sided p value of the exact sign-flip test that paired differences are 0.

    A permutation test: were both defenses the same, every image's difference d_j could as well be
    -d_j. The sum under all sign flips is S = sum_j +-|d_j|; its distribution follows exactly, to
    rounding (1e-12), from its characteristic function. For differences in {-1, 0, 1} it is
    McNemar's exact test.

    Source: Fisher 1935, The Design of Experiments, section 21.

    Args:
        differences: Integers `[n]`, for example in how many more repeats an image was right.
    """
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    total = int((sizes * counts).sum())
    # T = (S + total) / 2 lies in 0..total: its distribution is one discrete Fourier transform away
    angles = -2j * np.pi / (total + 1) * np.arange((total + 1) // 2 + 1)
    characteristic = np.ones(len(angles), dtype=np.complex128)
    for size, count in zip(sizes, counts, strict=True):
        characteristic *= ((1 + np.exp(angles * size)) / 2) ** count
    chances = np.fft.irfft(characteristic, total + 1)
    sums = 2 * np.arange(total + 1) - total
    extreme = np.abs(sums) >= abs(int(differences.sum()))
    return float(np.clip(chances[extreme].sum(), 0, 1))


def bootstrap_means(
    columns: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Return the means `[resamples, C]` of columns `[n, C]` over images drawn with replacement.

    A row is an image, with all that belongs to it, so that nothing of one image is ever drawn apart
    from the rest.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 6.
    """
    # images that look alike need not be told apart: how often each kind is drawn is multinomial
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    n = len(columns)
    shares = counts / n
    drawn = [generator.multinomial(n, shares) @ kinds / n for _ in range(resamples)]
    return np.array(drawn)


def percentile_interval(
    resampled: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the bootstrap's percentile interval of resampled statistics `[resamples]`.

    None where so many are NaN, which could lie beyond either end, that they would fill a tail.
    """
    tail, undefined = (1 - confidence) / 2, np.isnan(resampled)
    if undefined.mean() >= tail:
        return None
    low, high = np.quantile(resampled[~undefined], [tail, 1 - tail])
    return float(low), float(high)


def conformal_threshold(scores: Sequence[float], share: float) -> float:
    """Return the least score that one more of the same kind exceeds with chance `share` at most.

    It is the ceil((1 - share)(n + 1))-th of the n scores: a plain quantile would be exceeded more
    often than it says.

    Source: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, chapter 2.

    Args:
        scores: Of images that nothing else is measured on.
        share: In (0, 1).

    Raises:
        RequestError: There are too few.
    """
    # a whole number must not become the next one by rounding
    rank = math.ceil(round((1 - share) * (len(scores) + 1), 9))
    if rank > len(scores):
        needed = math.ceil(round(1 / share, 9)) - 1
        raise RequestError(
            f"a threshold that {100 * share:g} % exceed needs {needed} images or more, and there "
            f"are {len(scores)}"
        )
    return sorted(scores)[rank - 1]


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return how often a positive's score is above a negative's, ties half; NaN where one lacks."""
    from scipy.stats import rankdata

    if not len(positives) or not len(negatives):
        return math.nan
    ranks = rankdata([*positives, *negatives])[: len(positives)]
    least = len(positives) * (len(positives) + 1) / 2
    return float((ranks.sum() - least) / (len(positives) * len(negatives)))


def auroc_interval(
    value: float, positives: float, negatives: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the two-sided score interval of an AUROC over independent positives and negatives.

    Its ends are the values from which this one is z standard errors away, so that it has a width
    at 0 and 1, too.

    Source: Newcombe 2006, https://doi.org/10.1002/sim.2324, method 5.
    """
    from scipy.optimize import brentq

    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    more = (positives + negatives) / 2 - 1

    def beyond(at: float) -> float:
        spread = at * (1 - at) * (1 + more * ((1 - at) / (2 - at) + at / (1 + at)))
        return (value - at) ** 2 - z * z * spread / (positives * negatives)

    near = 1e-9  # at 0 and 1 the value itself is a root, too
    low = brentq(beyond, 0, value - near) if beyond(0) > 0 else 0.0
    high = brentq(beyond, value + near, 1) if beyond(1) > 0 else 1.0
    return float(low), float(high)


def _mean(per_repeat: Sequence[float], n: int) -> float:
    """Return the mean over repeats of accuracies that were checked to be such."""
    if n < 1:
        raise RequestError(f"an accuracy needs at least one image, not {n}")
    if not per_repeat:
        raise RequestError("an accuracy needs at least one repeat")
    if not all(0 <= value <= 1 for value in per_repeat):  # NaN fails it, too
        raise RequestError(f"accuracies must lie in [0, 1], not {list(per_repeat)}")
    return statistics.fmean(per_repeat)


def _check_counts(n: int, confidence: float, successes: float = 0) -> None:
    """Require an image, a confidence strictly between 0 and 1, no more successes than images."""
    if n < 1:
        raise RequestError(f"an interval needs at least one image, not {n}")
    if not 0 < confidence < 1:
        raise RequestError(f"confidence must lie between 0 and 1, not {confidence}; write 0.95")
    if not 0 <= successes <= n:
        raise RequestError(f"{successes} successes among {n} images are impossible; give 0 to {n}")


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of one number per repeat, some of which may be NaN."""
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return Spread(None, None)
    return Spread(mean, statistics.stdev(values) if len(values) > 1 else None)
