"""Pixels: budget strings, scales, and the norms and promises of perturbations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlskit.attacks import prepare
from rlskit.errors import RequestError, UntrustedError
from rlskit.pixels import (
    Pixels,
    check_adversarial,
    check_images,
    parse_budget,
    perturbation_norms,
    round_to_8bit,
)


@pytest.mark.parametrize(
    ("text", "pixel_range", "eps"),
    [
        ("0.02", "0:1", 0.02),
        (0.02, "0:1", 0.02),
        ("8/255", "0:1", 8 / 255),
        ("2.55/255", "0:1", 0.01),
        ("0", "0:1", 0),
        ("1", "0:1", 1),
        ("0.02", "-1:1", 0.01),
        ("16/255", "-1:1", 8 / 255),
        ("2", "-1:1", 1),
    ],
)
def test_budgets(text: str | float, pixel_range: str, eps: float) -> None:
    assert parse_budget(text, pixel_range) == pytest.approx(eps, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "pixel_range", "message"),
    [
        ("8", "0:1", "`eps` 8 is more than the whole pixel range 0:1; did you mean 8/255?"),
        (1.5, "0:1", "did you mean 1.5/255?"),
        ("3", "-1:1", "more than the whole pixel range -1:1; did you mean 3/255?"),
        ("-0.1", "0:1", "`eps` -0.1 must be a finite number of at least 0"),
        ("-8/255", "0:1", "at least 0"),
        ("nan", "0:1", "finite"),
        ("inf", "0:1", "finite"),
        ("1e999", "0:1", "finite"),
        ("8/0", "0:1", "is not a number; write 0.02 or 8/255"),
        ("eight", "0:1", "'eight' is not a number"),
        ("8/255/2", "0:1", "is not a number"),
        ("", "0:1", "is not a number"),
        ("0.1", "0:255", "`pixel_range` '0:255' is unknown; it is 0:1 or -1:1"),
    ],
)
def test_wrong_budgets(text: str | float, pixel_range: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_budget(text, pixel_range)
    assert message in str(caught.value)


def test_the_papers_scale() -> None:
    """eps' = 2 eps, c = c'/4, beta = beta'/2, and both are kept."""
    pgd = prepare("pgd", eps="0.02", pixel_range="-1:1")
    assert pgd.params["eps"] == pytest.approx(0.01)
    assert pgd.params["step_size"] == pytest.approx(0.001)
    assert pgd.stated["eps"] == pytest.approx(0.02)
    assert pgd.stated["step_size"] == pytest.approx(0.002)
    assert pgd.stated["pixel_range"] == "-1:1"
    ead = prepare("ead", c=0.1, beta=0.01, optimizer="fista", pixel_range="-1:1")
    assert ead.params["c"] == pytest.approx(0.025)
    assert ead.params["beta"] == pytest.approx(0.005)
    assert prepare("cw", c=0.1).params["c"] == pytest.approx(0.1)


def test_norms_by_hand() -> None:
    clean = torch.zeros(2, 1, 2, 2)
    changed = clean.clone()
    changed[0, 0, 0] = torch.tensor([0.3, 0.4])
    found = perturbation_norms(clean, changed)
    assert found["l0"].tolist() == [2, 0]
    assert found["l1"].tolist() == pytest.approx([0.7, 0])
    assert found["l2"].tolist() == pytest.approx([0.5, 0])
    assert found["linf"].tolist() == pytest.approx([0.4, 0])


CLEAN = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (CLEAN[..., :1], "shape"),
        (CLEAN * math.nan, "NaN or infinite"),
        (CLEAN + 0.6, "left [0, 1]"),
        (CLEAN - 0.6, "left [0, 1]"),
        (CLEAN + 0.1001, "broke its budget: linf"),
    ],
)
def test_promises_of_an_attack(changed: torch.Tensor, message: str) -> None:
    check_adversarial(CLEAN, CLEAN + 0.1, "linf", 0.1)  # 0.6 - 0.5 is 0.1000000238 in float32
    with pytest.raises(UntrustedError) as caught:
        check_adversarial(CLEAN, changed, "linf", 0.1)
    assert message in str(caught.value)


def test_without_a_budget_only_the_range_counts() -> None:
    check_adversarial(CLEAN, CLEAN + 0.4)
    with pytest.raises(UntrustedError):
        check_adversarial(CLEAN, CLEAN + 0.6)


@given(st.integers(0, 255))
def test_rounding_keeps_8_bit_images(value: int) -> None:
    image = torch.full((1, 1, 1, 1), value).float() / 255
    assert torch.equal(round_to_8bit(image), image)
    assert torch.equal(round_to_8bit((image + 0.4 / 255).clamp(0, 1)), image)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 4, 4), "must be a float tensor"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "must be a float tensor"),
        (torch.full((1, 1, 1, 1), 255.0), "must lie in [0, 1], but span [255, 255]"),
        (torch.full((1, 1, 1, 1), math.nan), "NaN or infinite"),
    ],
)
def test_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_images(images)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "cannot have the shape"),
        ({"mean": [0.5, 0.5]}, "one finite number per channel"),
        ({"mean": [math.nan]}, "one finite number per channel"),
        ({"std": [0.0]}, "std must be positive"),
        ({"std": None}, "unreadable"),
    ],
)
def test_pixel_constants(fields: dict[str, Any], message: str) -> None:
    good = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]}
    assert Pixels.from_json(good).shape == (1, 8, 8)
    with pytest.raises(RequestError, match=message):
        Pixels.from_json(good | fields)
