"""What the attacker sees, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import small_models
from rlskit.defenses import draws
from rlskit.defenses.answers import behind, joint_answer, mean_log_probabilities
from rlskit.errors import RequestError
from rlskit.threat.meter import Meter
from rlskit.threat.view import DrawsView, attackers_view, check_view, protocol_of

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """Answers every image with the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.get_buffer("logits")
        return logits.expand(len(images), -1) + 0 * images.sum((1, 2, 3))[:, None]


def test_mean_probability_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3, 5))
    wanted = np.log((np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0))
    found = mean_log_probabilities(torch.tensor(logits))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_mean_probability_of_extreme_logits() -> None:
    """Probabilities of e^-2000 and less are 0 as numbers, and exact as logarithms."""
    logits = torch.tensor([[[1000.0, -1000.0, -3000.0]], [[1000.0, -1000.0, -1000.0]]])
    found = mean_log_probabilities(logits)
    wanted = torch.tensor([[0.0, -2000.0, -2000.0 - math.log(2)]])
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)
    assert mean_log_probabilities(logits[:, :, 1:]).argmax() == 0  # 0.75 against 0.25


def test_an_answer_is_that_of_the_mean_probability_whatever_the_size_of_logits() -> None:
    logits = torch.randn(4, 50, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(joint_answer(logits), mean_log_probabilities(logits.double()).argmax(-1))
    gaps = behind(logits)[..., :1] - behind(logits)[..., 1:]
    shares = logits.double().softmax(-1)
    torch.testing.assert_close(gaps, shares[..., :1] - shares[..., 1:])
    extreme = torch.tensor([[[1000.0, -1000.0, -3000.0]], [[1000.0, -1000.0, -1000.0]]])
    assert joint_answer(extreme[:, :, 1:]).tolist() == [0]
    tiny = 1e-20 * logits  # where each probability is 0.2 to rounding
    assert torch.equal(joint_answer(tiny), logits.mean(0).argmax(-1))
    assert torch.equal(joint_answer(tiny[:1]), logits[0].argmax(-1))


def test_mean_of_probabilities_is_not_mean_of_logits() -> None:
    """One very sure draw against two that lean the other way."""
    members = [Fixed(20.0, 0.0), Fixed(0.0, 2.0), Fixed(0.0, 2.0)]
    p = 1 / (1 + math.exp(2))
    wanted = (1 / (1 + math.exp(-20)) + 2 * p) / 3
    found = DrawsView(members, "mean-prob")(IMAGES)
    assert found.exp()[0, 0].item() == pytest.approx(wanted, rel=1e-6)
    assert found.argmax(-1).tolist() == [1] * 5
    logits = DrawsView(members, "mean-logit")(IMAGES)
    torch.testing.assert_close(logits[0], torch.tensor([20 / 3, 4 / 3]))


def test_transfer_sees_the_first_attacker_draw_itself() -> None:
    model = small_models.model(2)
    view = attackers_view(model, "transfer", 1, seed=3, repeat=2, folded=False)
    (draw,) = draws(model, 1, seed=3, purpose="attacker", repeat=2)
    assert torch.equal(view(IMAGES), draw(IMAGES))


def test_multi_sees_the_mean_of_n_attacker_draws() -> None:
    model = small_models.model(3)
    members = draws(model, 4, seed=3, purpose="attacker", repeat=1)
    probabilities = torch.stack([member(IMAGES).softmax(-1) for member in members]).mean(0)
    view = attackers_view(model, "multi", 4, seed=3, repeat=1)
    torch.testing.assert_close(view(IMAGES).exp(), probabilities)
    assert torch.equal(view(IMAGES), view(IMAGES))
    logits = attackers_view(model, "multi", 4, seed=3, repeat=1, view="mean-logit")(IMAGES)
    torch.testing.assert_close(logits, torch.stack([m(IMAGES) for m in members]).mean(0))


def test_eot_is_fresh_at_every_call_and_repeats_itself() -> None:
    model = small_models.model(3)

    def answers(repeat: int = 0) -> list[list[float]]:
        view = attackers_view(model, "eot", 2, seed=3, repeat=repeat)
        return [view(IMAGES).flatten().tolist() for _ in range(6)]

    first = answers()
    assert first == answers()
    assert len({tuple(answer) for answer in first}) >= 5  # of 6, among 45 pairs
    assert first != answers(repeat=1)
    # the third call sees draws 4 and 5 of its stream
    members = draws(model, 2, seed=3, purpose="eot", repeat=1, first=4)
    assert answers(repeat=1)[2] == pytest.approx(DrawsView(members)(IMAGES).flatten().tolist())


def test_meter_counts_images_times_draws() -> None:
    meter = Meter(attackers_view(small_models.model(2), "multi", 3, seed=0, repeat=0), 3)
    points = IMAGES.clone().requires_grad_()
    with torch.no_grad():
        meter(IMAGES[:2])
    assert (meter.forwards, meter.backwards) == (6, 0)
    logits = meter(points)
    assert (meter.forwards, meter.backwards) == (21, 0)
    torch.autograd.grad(logits[:, 0].sum(), points, retain_graph=True)
    torch.autograd.grad(logits[:, 1].sum(), points)
    assert (meter.forwards, meter.backwards) == (21, 30)


@pytest.mark.parametrize(
    ("protocol", "n", "name"),
    [
        (None, 1, "transfer"),
        (None, 10, "multi"),
        ("transfer", 1, "transfer"),
        ("eot", 1, "eot"),
        ("eot", 10, "eot"),
        ("multi", 5, "multi"),
    ],
)
def test_protocols(protocol: str | None, n: int, name: str) -> None:
    assert protocol_of(protocol, n) == name


@pytest.mark.parametrize(
    ("protocol", "n", "message"),
    [
        (None, 0, "`n_attacked` must be at least 1, not 0"),
        ("blind", 1, "`protocol` 'blind' is unknown; it is one of transfer, multi, eot"),
        ("transfer", 2, "`protocol='transfer'` attacks 1 draw, not 2; use multi"),
    ],
)
def test_wrong_protocols(protocol: str | None, n: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        protocol_of(protocol, n)


def test_unknown_view() -> None:
    with pytest.raises(RequestError, match="`view` 'median' is unknown; it is one of mean-prob"):
        check_view("median")
