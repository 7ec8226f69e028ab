"""Agreement: how far the draws of a defense are right on the same images.

Everything is computed from `correct`, boolean `[T, N]`: is draw t right on image j? The pairwise
measures are means over the T(T-1)/2 pairs of draws.

Source: Kuncheva and Whitaker 2003, https://doi.org/10.1023/A:1022859003006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlskit.errors import RequestError
from rlskit.stats import bootstrap_means, percentile_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Agreement of T draws on N images; a number that is 0/0 is NaN, and `undefined` says why.

    Attributes:
        kappa: Interrater agreement in [-1/(T-1), 1]: 0 for independent draws, lower is more varied.
        disagreement: Share of images on which just one of a pair is right, in [0, 1].
        double_fault: Share of images on which both of a pair are wrong, in [0, 1].
        q_statistic: Yule's Q in [-1, 1], mean over the pairs for which it is defined.
        mean_accuracy: Mean accuracy of a single draw, in [0, 1].
        undefined: Why a number above is NaN; None where all are defined.
    """

    kappa: float
    disagreement: float
    double_fault: float
    q_statistic: float
    mean_accuracy: float
    undefined: str | None


@dataclass(frozen=True)
class Intervals:
    """Bootstrap 95 % intervals of the means over repeats; None where one cannot be told.

    There is none for the Q statistic: it is not a function of how many draws are right per image.
    """

    kappa: tuple[float, float] | None
    disagreement: tuple[float, float] | None
    double_fault: tuple[float, float] | None


class _Pairs(NamedTuple):
    """Images on which both, one or neither of draws i < j are right, each float64 `[T(T-1)/2]`.

    In the paper's names N11, N10, N01 and N00.
    """

    both: NDArray[np.float64]
    only_first: NDArray[np.float64]
    only_second: NDArray[np.float64]
    neither: NDArray[np.float64]


def agreement(correct: NDArray[np.bool_] | Tensor) -> Agreement:
    """Return all measures of `correct`, boolean `[T, N]`.

    Raises:
        RequestError: It is not boolean, not a matrix, or empty.
    """
    matrix = _matrix(correct)
    kappa, q = interrater_agreement(matrix), q_statistic(matrix)
    mean_accuracy = float(matrix.mean())
    return Agreement(
        kappa=kappa,
        disagreement=disagreement(matrix),
        double_fault=double_fault(matrix),
        q_statistic=q,
        mean_accuracy=mean_accuracy,
        undefined=_why_undefined(len(matrix), mean_accuracy, q),
    )


def interrater_agreement(correct: NDArray[np.bool_] | Tensor) -> float:
    """Return kappa of `correct`, boolean `[T, N]`.

        kappa = 1 - [(1/T) sum_j l_j (T - l_j)] / [N (T - 1) p (1 - p)]

    with l_j the number of draws that are right on image j and p the mean accuracy. It is Fleiss'
    kappa of the draws as raters of right and wrong. NaN for T = 1 and for p in {0, 1}.

    Raises:
        RequestError: `correct` is not boolean, not a matrix, or empty.
    """
    matrix = _matrix(correct)
    draws, images = matrix.shape
    right = matrix.sum(axis=0)  # l_j
    p = right.sum() / (images * draws)
    if draws == 1 or p in (0, 1):
        return math.nan
    observed = (right * (draws - right)).sum() / draws
    return float(1 - observed / (images * (draws - 1) * p * (1 - p)))


def disagreement(correct: NDArray[np.bool_] | Tensor) -> float:
    """Return the mean over pairs of the share of images on which just one draw is right.

    `correct` is boolean `[T, N]`; the result is in [0, 1], NaN for T = 1. Labels are not compared:
    two draws that are wrong in different ways agree here.

    Raises:
        RequestError: `correct` is not boolean, not a matrix, or empty.
    """
    matrix = _matrix(correct)
    pairs = _pairs(matrix)
    return _mean((pairs.only_first + pairs.only_second) / matrix.shape[1])


def double_fault(correct: NDArray[np.bool_] | Tensor) -> float:
    """Return the mean over pairs of the share of images on which both draws are wrong.

    `correct` is boolean `[T, N]`; the result is in [0, 1], NaN for T = 1.

    Raises:
        RequestError: `correct` is not boolean, not a matrix, or empty.
    """
    matrix = _matrix(correct)
    return _mean(_pairs(matrix).neither / matrix.shape[1])


def q_statistic(correct: NDArray[np.bool_] | Tensor) -> float:
    """Return the mean over pairs of Yule's Q, in [-1, 1]; 0 for independent draws.

        Q = (N11 N00 - N10 N01) / (N11 N00 + N10 N01)

    `correct` is boolean `[T, N]`. Pairs with 0/0 (for example a draw that is always right) are left
    out of the mean; NaN where no pair is left.

    Raises:
        RequestError: `correct` is not boolean, not a matrix, or empty.
    """
    pairs = _pairs(_matrix(correct))
    same, different = pairs.both * pairs.neither, pairs.only_first * pairs.only_second
    defined = same + different > 0
    return _mean((same - different)[defined] / (same + different)[defined])


def intervals(
    correct: Sequence[NDArray[np.bool_] | Tensor],
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Intervals:
    """Return how far other images like these would move the measures.

    The images are resampled, never the draws: an image is drawn together with its column in every
    repeat. Given how many draws l_j are right on each image j, all follows from the resampled means
    of l_j and of l_j (T - l_j).

    Args:
        correct: A boolean matrix `[T, N]` per repeat, of the same images.
        generator: Source of the resamples.
        resamples: Their number.

    Raises:
        RequestError: A matrix is not boolean, not a matrix, or empty.
    """
    matrices = [_matrix(one) for one in correct]
    draws = len(matrices[0])
    if draws == 1:
        return Intervals(None, None, None)
    right = np.stack([matrix.sum(axis=0) for matrix in matrices], axis=1).astype(np.float64)
    columns = np.concatenate([right, right * (draws - right)], axis=1)
    means = bootstrap_means(columns, generator, resamples)  # [resamples, 2 R]
    p = means[:, : len(matrices)] / draws
    apart = means[:, len(matrices) :] / (draws * (draws - 1) / 2)  # the disagreement
    chance = 2 * p * (1 - p)
    undefined = np.full_like(apart, math.nan)
    kappa = 1 - np.divide(apart, chance, out=undefined, where=chance > 0)
    # a wrong draw of a pair is wrong with the other, or alone; rounding may end below 0
    both_wrong = np.maximum(1 - p - apart / 2, 0)
    return Intervals(
        *(percentile_interval(found.mean(axis=1)) for found in (kappa, apart, both_wrong))
    )


def _matrix(correct: NDArray[np.bool_] | Tensor) -> NDArray[np.bool_]:
    """Return `correct` as a numpy matrix that was checked to be boolean and not empty."""
    matrix = correct if isinstance(correct, np.ndarray) else correct.detach().cpu().numpy()
    if matrix.dtype != np.bool_ or matrix.ndim != 2 or not matrix.size:
        raise RequestError(
            "agreement needs a boolean matrix [draws, images] with at least one of each, "
            f"not {matrix.dtype} {list(matrix.shape)}"
        )
    return matrix


def _pairs(matrix: NDArray[np.bool_]) -> _Pairs:
    """Count the images of every pair of draws."""
    right = matrix.astype(np.float64)  # exact up to 2^53 images, and much faster than integers
    wrong = 1 - right
    first, second = np.triu_indices(len(matrix), k=1)
    counts = (right @ right.T, right @ wrong.T, wrong @ right.T, wrong @ wrong.T)
    return _Pairs(*(count[first, second] for count in counts))


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, NaN for no values (numpy would warn)."""
    return float(values.mean()) if values.size else math.nan


def _why_undefined(draws: int, mean_accuracy: float, q: float) -> str | None:
    """Say why a measure is NaN."""
    if draws == 1:
        return "one draw has no other to agree with: at least two are needed"
    if mean_accuracy in (0, 1):
        state = "right" if mean_accuracy else "wrong"
        return f"every draw is {state} on every image: kappa and the Q statistic are 0/0"
    if math.isnan(q):
        return "the Q statistic is 0/0 for every pair of draws"
    return None
