"""MORA's step by hand, and an ensemble on which PGD on the mean stands still."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit.attacks import prepare
from rlskit.attacks.mora import mora, reweighed_lead
from rlskit.threat.view import DrawsView
from small_models import answers, generator


class Lead(nn.Module):
    """Class 0 leads class 1 by what is linear in two pixels around 0.5."""

    def __init__(self, slopes: tuple[float, float], at_half: float) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(slopes))
        self.at_half = at_half

    def forward(self, images: Tensor) -> Tensor:
        lead = (images.flatten(1) - 0.5) @ self.slopes + self.at_half
        return torch.stack([lead, torch.zeros_like(lead)], 1)


HALF, LABEL = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.long)


def ensemble(*members: Lead) -> DrawsView:
    return DrawsView(list(members))


def test_the_weights_by_hand() -> None:
    """Leads 1 and 3 weigh as sigmoid(d) sigmoid(-d) does; a member that errs weighs nothing."""
    logits = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[-2.0, 0.0]]])
    slopes = [math.exp(d) / (1 + math.exp(d)) ** 2 for d in (1, 3)]
    by_hand = (slopes[0] * 1 + slopes[1] * 3) / sum(slopes)
    assert reweighed_lead(logits, LABEL).item() == pytest.approx(by_hand, rel=1e-5)
    wrong = torch.tensor([[[-1.0, 0.0]], [[-3.0, 0.0]]])
    assert reweighed_lead(wrong, LABEL).item() == pytest.approx(-2)
    sure = torch.tensor([[[900.0, 0.0]], [[901.0, 0.0]]])  # whose weights are 0 in any float
    assert reweighed_lead(sure, LABEL).item() == pytest.approx(900 + 1 / (1 + math.e), rel=1e-6)


@pytest.mark.parametrize("slope", [3.0, 5.0])
def test_the_first_step_by_hand(slope: float) -> None:
    """On a pixel that helps one member by 1 and another by -slope, the nearer one wins up to 4.35.

    For the mean of the leads it would be lost in both cases.
    """
    model = ensemble(Lead((1.0, 0.0), 1.0), Lead((-slope, 0.0), 3.0))
    found = mora(model, HALF, LABEL, eps=0.01, steps=1, generator=generator())
    weights = [math.exp(d) / (1 + math.exp(d)) ** 2 for d in (1, 3)]
    sign = math.copysign(1, -(weights[0] - slope * weights[1]))
    assert sign == (-1 if slope == 3 else 1)
    assert found[0, 0, 0, 0].item() == pytest.approx(0.5 + sign * 0.01)


def test_an_ensemble_is_broken_that_pgd_on_the_mean_does_not_break() -> None:
    """Once the first member errs, the mean's gradient still follows it and keeps the second right.

    In units of eps = 0.1: leads 1 - 4 u - v and 8 + 9 v, and a third member that nothing moves.
    With u = 1 and v = -1 both err, and the mean with them.
    """
    eps = 0.1
    model = ensemble(
        Lead((-4 / eps, -1 / eps), 1.0), Lead((0.0, 9 / eps), 8.0), Lead((0.0, 0.0), 30.0)
    )
    for loss in ("ce", "margin"):
        pgd = prepare("pgd", eps=eps, steps=50, step_size=eps / 20, loss=loss, random_start=False)
        assert answers(model, pgd(model, HALF, LABEL, generator=generator())) == 0
    options: dict[str, Any] = {"eps": eps, "steps": 50}
    found = prepare("mora", **options)(model, HALF, LABEL, generator=generator())
    assert answers(model, found) == 1
    far = torch.tensor([[[[0.5 + eps, 0.5 - eps]]]])
    assert answers(model, far) == 1


def test_one_network_is_an_ensemble_of_one() -> None:
    """Its weight is 1, whatever its lead: a plane is crossed just beyond its distance."""
    plane = small_models.Plane()
    images, labels = plane.images()
    for norm in ("linf", "l2"):
        for share, fooled in ((0.98, False), (1.02, True)):
            eps = share * plane.distance(norm)
            found = mora(plane, images, labels, norm=norm, eps=eps, generator=generator())
            assert bool((answers(plane, found) != labels).all()) is fooled
