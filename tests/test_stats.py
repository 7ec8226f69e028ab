"""Intervals against closed forms and hand-computed values."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlskit.errors import RequestError
from rlskit.stats import Accuracy, accuracy, lower_bound, wilson

Z95 = 1.959963984540054
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


def test_one_repeat_shows_no_spread() -> None:
    assert accuracy([0.6], 100).std is None
    assert accuracy([0.6, 0.6], 100).std == 0.0


def test_accuracy_survives_json() -> None:
    summary = Accuracy(mean=0.6, std=None, ci95=(0.5, 0.7), n=100, lower_bound=0.51)
    assert json.loads(json.dumps(summary.to_json())) == {
        "mean": 0.6,
        "std": None,
        "ci95": [0.5, 0.7],
        "n": 100,
        "lower_bound": 0.51,
    }


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
