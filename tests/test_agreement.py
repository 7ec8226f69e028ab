"""Agreement of draws against the worked example, and kappa against an independent Fleiss' kappa."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from rlskit.diversity.agreement import (
    Agreement,
    agreement,
    interrater_agreement,
    intervals,
    q_statistic,
)
from rlskit.errors import RequestError

Correct = NDArray[np.bool_]
EXAMPLE = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 1]], dtype=bool)

matrices = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))
"""Matrices [draws, images], degenerate ones included."""


def fleiss_kappa(correct: Correct) -> float:
    """Fleiss' (1971) kappa of T raters who sort N images into right and wrong, rating by rating."""
    draws, images = correct.shape
    counts = [(int(column.sum()), draws - int(column.sum())) for column in correct.T]
    observed = [sum(c * (c - 1) for c in row) / (draws * (draws - 1)) for row in counts]
    shares = [sum(row[k] for row in counts) / (draws * images) for k in (0, 1)]
    chance = sum(share**2 for share in shares)
    return float((sum(observed) / images - chance) / (1 - chance))


def is_degenerate(correct: Correct) -> bool:
    return len(correct) == 1 or bool(correct.all()) or not correct.any()


def test_worked_example() -> None:
    result = agreement(EXAMPLE)
    assert result.kappa == pytest.approx(1 / 9, abs=1e-15)
    assert result.disagreement == pytest.approx(1 / 3)
    assert result.double_fault == pytest.approx(1 / 12)
    assert result.mean_accuracy == 0.75
    # pairs (1, 2) and (2, 3): N11 = 2, N10 = N01 = 1, N00 = 0, Q = -1; pair (1, 3): Q = 1
    assert result.q_statistic == pytest.approx(-1 / 3)
    assert result.undefined is None


def test_q_statistic_by_hand() -> None:
    # N11 = 3, N10 = 1, N01 = 2, N00 = 4: (12 - 2) / (12 + 2)
    pair = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]], dtype=bool)
    assert q_statistic(pair) == pytest.approx(10 / 14)
    # a third draw that is always right makes 0/0 pairs, which are left out
    assert q_statistic(np.vstack([pair, np.ones(10, dtype=bool)])) == pytest.approx(10 / 14)


@given(matrices)
def test_kappa_is_fleiss_kappa_of_correctness(correct: Correct) -> None:
    if not is_degenerate(correct):
        assert interrater_agreement(correct) == pytest.approx(fleiss_kappa(correct), abs=1e-12)


@given(matrices)
def test_kappa_follows_from_the_mean_disagreement(correct: Correct) -> None:
    if is_degenerate(correct):
        return
    result = agreement(correct)
    apart = [float((a != b).mean()) for a, b in combinations(correct, 2)]
    wrong = [float((~a & ~b).mean()) for a, b in combinations(correct, 2)]
    assert result.disagreement == pytest.approx(np.mean(apart))
    assert result.double_fault == pytest.approx(np.mean(wrong))
    p = correct.mean()
    assert result.kappa == pytest.approx(1 - np.mean(apart) / (2 * p * (1 - p)), abs=1e-12)


@given(matrices)
def test_range_and_reason(correct: Correct) -> None:
    result = agreement(correct)
    assert math.isnan(result.kappa) == is_degenerate(correct)
    undefined = any(
        map(
            math.isnan, (result.kappa, result.disagreement, result.double_fault, result.q_statistic)
        )
    )
    assert (result.undefined is not None) == undefined
    if not is_degenerate(correct):
        assert -1 / (len(correct) - 1) - 1e-12 <= result.kappa <= 1


@given(matrices, st.integers(0, 2**32 - 1))
def test_order_of_draws_and_images_does_not_matter(correct: Correct, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rng.permutation(correct, axis=0), axis=1)
    assert numbers(agreement(shuffled)) == pytest.approx(numbers(agreement(correct)), nan_ok=True)


def numbers(result: Agreement) -> tuple[float, ...]:
    return (
        result.kappa,
        result.disagreement,
        result.double_fault,
        result.q_statistic,
        result.mean_accuracy,
    )


def test_independent_draws_agree_by_chance_only() -> None:
    correct = np.random.default_rng(0).random((10, 20_000)) < 0.7
    result = agreement(correct)
    # the standard error of kappa is 1 / sqrt(N T (T - 1) / 2) = .001
    assert result.kappa == pytest.approx(0, abs=0.004)
    assert result.q_statistic == pytest.approx(0, abs=0.02)
    assert result.disagreement == pytest.approx(2 * 0.7 * 0.3, abs=0.01)
    assert result.double_fault == pytest.approx(0.3**2, abs=0.01)


def test_identical_draws_agree_fully() -> None:
    result = agreement(np.tile(EXAMPLE[0], (5, 1)))
    assert numbers(result) == (1.0, 0.0, 0.25, 1.0, 0.75)


def test_opposite_draws_reach_the_lowest_kappa() -> None:
    result = agreement(np.array([[1, 0], [0, 1]], dtype=bool))
    assert numbers(result) == (-1.0, 1.0, 0.0, -1.0, 0.5)
    # one of three draws right on each image
    assert interrater_agreement(np.eye(3, dtype=bool)) == pytest.approx(-1 / 2)


def test_torch_and_numpy_agree_bit_for_bit() -> None:
    assert agreement(torch.from_numpy(EXAMPLE)) == agreement(EXAMPLE)


def unequal(repeats: int, draws: int, images: int) -> list[Correct]:
    """Matrices of images that are right in most draws, in some, or in few."""
    rng = np.random.default_rng(7)
    hard = rng.beta(2, 1, images)
    return [rng.random((draws, images)) < hard for _ in range(repeats)]


MEASURES = ("kappa", "disagreement", "double_fault")


def brute_force(correct: list[Correct], resamples: int) -> dict[str, tuple[float, float]]:
    """The intervals from resampled matrices, image by image, each measured anew."""
    rng = np.random.default_rng(11)
    n = correct[0].shape[1]
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(resamples):
        images = rng.integers(n, size=n)
        measured = [agreement(matrix[:, images]) for matrix in correct]
        for name in MEASURES:
            found[name].append(float(np.mean([getattr(one, name) for one in measured])))
    return {name: tuple(np.quantile(values, [0.025, 0.975])) for name, values in found.items()}


@pytest.mark.parametrize("repeats", [1, 3])
def test_intervals_are_those_of_resampled_matrices(repeats: int) -> None:
    """Up to chance: an end of 2,000 resamples has a standard error of 6 % of the standard error."""
    correct = unequal(repeats, 4, 80)
    wanted = brute_force(correct, 2000)
    found = intervals(correct, np.random.default_rng(0), resamples=4000)
    for name in MEASURES:
        low, high = wanted[name]
        error = (high - low) / (2 * 1.96)
        assert getattr(found, name) == pytest.approx((low, high), abs=0.25 * error)
        mean = np.mean([getattr(agreement(matrix), name) for matrix in correct])
        assert getattr(found, name)[0] < mean < getattr(found, name)[1]


def test_intervals_come_from_the_measures_of_the_very_resamples() -> None:
    """The same resamples, drawn here kind by kind, and measured as matrices: the same ends."""
    correct = unequal(2, 3, 40)
    found = intervals(correct, np.random.default_rng(5), resamples=50)
    right = np.stack([matrix.sum(0) for matrix in correct], axis=1)
    _, first, counts = np.unique(right, axis=0, return_index=True, return_counts=True)
    rng = np.random.default_rng(5)
    kappas = []
    for _ in range(50):
        images = np.repeat(first, rng.multinomial(40, counts / 40))
        kappas.append(np.mean([interrater_agreement(matrix[:, images]) for matrix in correct]))
    assert found.kappa == pytest.approx(tuple(np.quantile(kappas, [0.025, 0.975])), rel=1e-9)


def test_repeats_do_not_shrink_an_interval() -> None:
    """Ten times the same draws on the same images tell no more than once."""
    (once,) = unequal(1, 5, 60)
    one = intervals([once], np.random.default_rng(0))
    ten = intervals([once] * 10, np.random.default_rng(0))
    for name in MEASURES:
        assert getattr(ten, name) == pytest.approx(getattr(one, name), rel=1e-12)


def test_intervals_that_cannot_be_told() -> None:
    rng = np.random.default_rng(0)
    found = intervals([EXAMPLE[:1]], rng)
    assert (found.kappa, found.disagreement, found.double_fault) == (None, None, None)
    found = intervals([np.ones((3, 9), dtype=bool)], rng)
    assert (found.kappa, found.disagreement, found.double_fault) == (None, (0, 0), (0, 0))
    one_error = np.ones((2, 9), dtype=bool)
    one_error[0, 0] = False  # a third of the resamples does not have this image
    assert intervals([one_error], rng).kappa is None


def test_one_draw_is_undefined() -> None:
    result = agreement(EXAMPLE[:1])
    assert all(map(math.isnan, numbers(result)[:4]))
    assert result.mean_accuracy == 0.75
    assert result.undefined == "one draw has no other to agree with: at least two are needed"


@pytest.mark.parametrize(
    ("value", "state", "double"), [(True, "right", 0.0), (False, "wrong", 1.0)]
)
def test_accuracy_of_zero_or_one_is_undefined(value: bool, state: str, double: float) -> None:
    result = agreement(np.full((3, 4), value))
    assert math.isnan(result.kappa)
    assert math.isnan(result.q_statistic)
    assert (result.disagreement, result.double_fault) == (0.0, double)
    assert (
        result.undefined
        == f"every draw is {state} on every image: kappa and the Q statistic are 0/0"
    )


def test_q_alone_may_be_undefined() -> None:
    result = agreement(np.array([[1, 1], [1, 0]], dtype=bool))
    assert result.kappa == pytest.approx(-1 / 3)  # p = 3/4, disagreement 1/2: 1 - .5 / .375
    assert math.isnan(result.q_statistic)
    assert result.undefined == "the Q statistic is 0/0 for every pair of draws"


@pytest.mark.parametrize(
    "correct", [EXAMPLE.astype(int), EXAMPLE[0], np.zeros((3, 0), bool), np.zeros((0, 3), bool)]
)
def test_anything_but_a_boolean_matrix_is_refused(correct: Correct) -> None:
    with pytest.raises(RequestError, match=r"boolean matrix \[draws, images\]"):
        agreement(correct)
