"""Intervals against closed forms and hand-computed values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binomtest

from rlskit.errors import RequestError
from rlskit.stats import (
    accuracy,
    bootstrap_means,
    lower_bound,
    mcnemar,
    mean_at_least,
    percentile_interval,
    sign_flip,
    t_interval,
    wilson,
)

Z95 = 1.959963984540054
T975_1_DF = math.tan(0.475 * math.pi)  # 12.706
T95_1_DF = math.tan(0.45 * math.pi)  # 6.3138: Student's t with 1 degree of freedom is Cauchy's
T95_2_DF = 0.9 / math.sqrt(2 * 0.95 * 0.05)  # 2.9200: closed form for 2 degrees of freedom


def test_wilson_published_and_hand_values() -> None:
    low, high = wilson(500, 1000)
    assert (round(100 * low, 1), round(100 * high, 1)) == (46.9, 53.1)
    low, high = wilson(5000, 10_000)
    assert (round(100 * low, 1), round(100 * high, 1)) == (49.0, 51.0)
    # centre (776 + z^2/2) / (846 + z^2) = .915372, half z sqrt(776*70/846 + z^2/4) / ... = .018618
    assert wilson(776, 846) == pytest.approx((0.896754, 0.933989), abs=1e-6)


def test_wilson_at_the_edges() -> None:
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(Z95**2 / (10 + Z95**2))
    low, high = wilson(10, 10)
    assert low == pytest.approx(10 / (10 + Z95**2))
    assert high == 1.0


@given(
    st.integers(1, 10_000),
    st.floats(0, 1),
    st.sampled_from([(0.9, 1.6448536269514722), (0.95, Z95)]),
)
def test_wilson_bounds_solve_the_score_equation(
    n: int, share: float, level: tuple[float, float]
) -> None:
    confidence, z = level
    low, high = wilson(share * n, n, confidence)
    assert 0 <= low <= share * n / n <= high <= 1
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)


def test_clopper_pearson_at_half_of_ten_thousand() -> None:
    assert round(100 * lower_bound([0.5], 10_000), 2) == 49.17


def test_clopper_pearson_closed_forms() -> None:
    assert lower_bound([0.0], 50) == 0.0
    assert lower_bound([1.0], 50) == pytest.approx(0.05 ** (1 / 50))
    assert lower_bound([1 / 50], 50) == pytest.approx(1 - 0.95 ** (1 / 50))
    assert lower_bound([1.0], 50, confidence=0.99) == pytest.approx(0.01 ** (1 / 50))


@pytest.mark.parametrize("successes", [3, 10, 17])
def test_clopper_pearson_leaves_five_percent_in_the_upper_tail(successes: int) -> None:
    p = lower_bound([successes / 20], 20)
    tail = sum(math.comb(20, k) * p**k * (1 - p) ** (20 - k) for k in range(successes, 21))
    assert tail == pytest.approx(0.05)


def test_fractional_successes_lie_between_the_whole_ones() -> None:
    below, between, above = (lower_bound([k / 100], 100) for k in (50, 50.5, 51))
    assert below < between < above


def test_repeats_that_vary_lower_the_bound_to_student_t() -> None:
    # mean .6; std .1 sqrt(2) over 2 repeats, so its standard error is .1: below 0, so 0
    assert lower_bound([0.5, 0.7], 10_000) == 0.0
    assert lower_bound([0.59, 0.61], 10_000) == pytest.approx(0.6 - T95_1_DF * 0.01)
    assert lower_bound([0.5, 0.6, 0.7], 10_000) == pytest.approx(0.6 - T95_2_DF * 0.1 / 3**0.5)


def test_repeats_never_count_as_images() -> None:
    once = lower_bound([0.6], 100)
    assert lower_bound([0.6] * 50, 100) == once
    assert lower_bound([0.59, 0.61] * 50, 100) == pytest.approx(once)
    assert accuracy([0.6] * 50, 100).ci95 == accuracy([0.6], 100).ci95 == wilson(60, 100)


def test_accuracy_summarises_repeats() -> None:
    summary = accuracy([0.5, 0.6, 0.7], 10_000)
    assert summary.mean == pytest.approx(0.6)
    assert summary.std == pytest.approx(0.1)
    assert summary.ci95 == pytest.approx(wilson(6000, 10_000))
    assert summary.n == 10_000
    assert summary.lower_bound == lower_bound([0.5, 0.6, 0.7], 10_000)
    assert summary.ci95_repeats == t_interval([0.5, 0.6, 0.7])


def test_one_repeat_shows_no_spread() -> None:
    assert accuracy([0.6], 100).std is None
    assert accuracy([0.6], 100).ci95_repeats is None
    assert accuracy([0.6, 0.6], 100).std == 0.0
    assert accuracy([0.6, 0.6], 100).ci95_repeats == (0.6, 0.6)


def test_the_interval_over_repeats_is_students() -> None:
    half = T975_1_DF * 0.001  # std .001 sqrt(2) over 2 repeats: a standard error of .001
    assert t_interval([0.599, 0.601]) == pytest.approx((0.6 - half, 0.6 + half))
    assert t_interval([0.2, 0.9]) == (0.0, 1.0)  # not beyond what a share can be


def test_mean_at_least_by_hand() -> None:
    assert mean_at_least([1.0, 3.0]) == pytest.approx(2 - 6.313751514675043, rel=1e-12)
    assert mean_at_least([2.0, 2.0, 2.0]) == 2.0
    assert mean_at_least([1.0]) is None


def test_mcnemar_by_hand() -> None:
    # of 6 images that just one gets right, 1 falls to the first: 2 (1 + 6) / 2^6
    assert mcnemar(1, 5) == pytest.approx(14 / 64, rel=1e-12)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024, rel=1e-12)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0


@given(st.integers(0, 300), st.integers(1, 300))
def test_mcnemar_is_the_binomial_test_and_symmetric(first: int, second: int) -> None:
    assert mcnemar(first, second) == mcnemar(second, first)
    wanted = binomtest(first, first + second, 0.5).pvalue
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50), st.integers(1, 5))
def test_sign_flips_of_single_decisions_are_mcnemars(
    first: int, second: int, neither: int, size: int
) -> None:
    """Also in any unit: a difference of 3 of 3 repeats on every image is one of 1 of 1."""
    differences = np.repeat([-size, size, 0], [first, second, neither]).astype(np.int64)
    if len(differences):
        assert sign_flip(differences) == pytest.approx(mcnemar(first, second), rel=1e-9, abs=1e-12)


@given(arrays(np.int64, st.integers(1, 9), elements=st.integers(-5, 5)))
def test_sign_flips_one_by_one(differences: NDArray[np.int64]) -> None:
    flips = itertools.product([-1, 1], repeat=len(differences))
    sums = [abs(int((differences * signs).sum())) for signs in flips]
    wanted = np.mean([one >= abs(int(differences.sum())) for one in sums])
    assert sign_flip(differences) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_sign_flips_of_many_images_are_nearly_normal() -> None:
    rng = np.random.default_rng(0)
    differences = rng.integers(-10, 11, 10_000) + (rng.random(10_000) < 0.12)
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert 1.5 < z < 2.5
    assert sign_flip(differences) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_bootstrap_of_a_mean_against_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0.3, 2.0, (2000, 1))
    means = bootstrap_means(values, np.random.default_rng(2), 5000)[:, 0]
    error = values.std() / math.sqrt(2000)
    assert means.std() == pytest.approx(error, rel=0.05)
    wanted = values.mean() - Z95 * error, values.mean() + Z95 * error
    assert percentile_interval(means) == pytest.approx(wanted, abs=0.1 * error)


def test_a_resample_keeps_what_belongs_to_an_image_together() -> None:
    first = np.arange(50.0)
    columns = np.stack([first, 100 - first, 3 * first], axis=1)
    means = bootstrap_means(columns, np.random.default_rng(0), 200)
    assert means[:, 1] == pytest.approx(100 - means[:, 0])
    assert means[:, 2] == pytest.approx(3 * means[:, 0])


def test_images_that_look_alike_are_drawn_as_often_as_others() -> None:
    """A share of 30 % of 400 images: binomial, whatever was put together to draw it."""
    right = np.repeat([1.0, 0.0], [120, 280])[:, None]
    counts = 400 * bootstrap_means(right, np.random.default_rng(3), 20_000)[:, 0]
    assert counts.mean() == pytest.approx(120, abs=4 * 9.165 / math.sqrt(20_000))
    assert counts.std() == pytest.approx(9.165, rel=0.03)  # sqrt(400 .3 .7)


def test_percentiles_by_hand_and_where_too_much_is_undefined() -> None:
    resampled = np.arange(1001.0)
    assert percentile_interval(resampled) == pytest.approx((25, 975))
    resampled[-20:] = math.nan
    assert percentile_interval(resampled) == pytest.approx((0.025 * 980, 0.975 * 980))
    resampled[-30:] = math.nan
    assert percentile_interval(resampled) is None


@pytest.mark.parametrize(
    ("successes", "n", "confidence"),
    [
        (0, 0, 0.95),
        (0, -1, 0.95),
        (-1, 10, 0.95),
        (11, 10, 0.95),
        (math.nan, 10, 0.95),
        (5, 10, 1.0),
    ],
)
def test_wilson_refuses_impossible_counts(successes: float, n: int, confidence: float) -> None:
    with pytest.raises(RequestError):
        wilson(successes, n, confidence)


@pytest.mark.parametrize(
    ("per_repeat", "n", "message"),
    [
        ([0.5], 0, "at least one image"),
        ([], 10, "at least one repeat"),
        ([0.5, 50.0], 10, r"\[0, 1\]"),
        ([math.nan], 10, r"\[0, 1\]"),
    ],
)
def test_accuracies_are_checked(per_repeat: list[float], n: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        lower_bound(per_repeat, n)
    with pytest.raises(RequestError, match=message):
        accuracy(per_repeat, n)
