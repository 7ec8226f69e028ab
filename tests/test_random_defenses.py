"""Defenses that change images, weights or the answer, each against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.conversion import convert
from rlskit.defenses import draws
from rlskit.defenses.crossmax import crossmax
from rlskit.defenses.perturbed import Intercept
from rlskit.defenses.random_bits import quantized
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SIDE = 16


def converted(defense: str, **settings: float) -> BankedModel:
    return convert(
        "test_resnet", defense=defense, image_size=SIDE, num_classes=5, settings=settings or None
    )


def seen(model: BankedModel, images: Tensor, count: int = 200) -> list[Tensor]:
    """Return what the first convolution of each draw reads, and with which weights."""
    found: list[Tensor] = []

    def noted(_: object, args: tuple[Any, ...], kwargs: object) -> Tensor:
        found.extend(args[:2])
        raise InterruptedError

    for draw in draws(model, count, seed=0, purpose="attacker"):
        with pytest.raises(InterruptedError), Intercept((F.conv2d,), noted):
            draw(images)
    return found


def test_smoothing_adds_noise_of_its_size_in_pixels() -> None:
    model = converted("smoothing", sigma=0.1)
    images = torch.rand(2, 1, SIDE, SIDE)
    noisy = seen(model, images, 50)[::2]
    std = torch.tensor(model.card.pixels.std).view(-1, 1, 1)
    noise = (
        torch.stack([one * std for one in noisy])
        - images
        + torch.tensor(model.card.pixels.mean).view(-1, 1, 1)
    )
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noise[:, 0], noise[:, 1])  # of the draw, for every image


def test_resize_pad_keeps_the_size_and_moves_all_of_the_image() -> None:
    model = converted("resize-pad", shrink=0.5)
    dark = model.normalize(torch.zeros(1, 1, SIDE, SIDE))[0, 0, 0, 0]
    sides, corners = [], set()
    for image in seen(model, torch.ones(1, 1, SIDE, SIDE), 60)[::2]:
        assert image.shape == (1, 1, SIDE, SIDE)
        rows, columns = (image[0, 0] > dark + 0.1).nonzero().unbind(1)
        sides.append(int(rows.max() - rows.min()) + 1)
        corners.add((int(rows.min()), int(columns.min())))
    assert min(sides) == SIDE // 2
    assert max(sides) == SIDE
    assert len(corners) > 20


def test_bits_by_hand() -> None:
    values = torch.tensor([-1.0, -0.4, 0.1, 0.2, 0.6], requires_grad=True)
    found = quantized(values, 3)  # steps of a third
    assert found.tolist() == pytest.approx([-1, -1 / 3, 0, 1 / 3, 2 / 3])
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope.tolist() == [1] * 5
    weights = seen(
        converted("random-bits", least_bits=2, most_bits=4), torch.rand(1, 1, SIDE, SIDE)
    )
    assert {len(torch.unique(weight)) <= 3 for weight in weights[1::2]} == {True, False}
    assert all(len(torch.unique(weight)) <= 15 for weight in weights[1::2])
    with pytest.raises(RequestError, match="whole numbers from 2 to 24"):
        converted("random-bits", least_bits=1)


def test_filters_are_random_but_for_those_that_are_learned() -> None:
    weights = torch.stack(seen(converted("random-filters"), torch.rand(1, 1, SIDE, SIDE))[1::2])
    learned = weights.shape[1] // 4
    assert (weights[:, :learned] == weights[:1, :learned]).all()
    assert weights[:, learned:].std().item() == pytest.approx(1 / 3, rel=0.02)
    assert (weights[0, learned:] != weights[1, learned:]).all()


def test_weights_are_shaken_in_proportion_to_their_spread() -> None:
    model = converted("weight-noise", alpha=0.5)
    weights = torch.stack(seen(model, torch.rand(1, 1, SIDE, SIDE))[1::2])
    plain = next(p for p in model.banks[0].parameters() if p.ndim == 4).detach()
    noise = (weights - plain).std().item()
    assert noise == pytest.approx(0.5 * plain.std(correction=0).item(), rel=0.02)


def test_crossmax_by_hand() -> None:
    """From each member's highest: [0, -1, -3], [-2, 0, -1] and [-4, -1, 0]; then by class."""
    logits = torch.tensor([[5.0, 4, 2], [1, 3, 2], [-4, -1, 0]])[:, None]
    assert crossmax(logits).tolist() == [[-2, -1, -1]]
    model = converted("crossmax")
    (draw,) = draws(model, 1, seed=0, purpose="defender")
    images = torch.rand(3, 1, SIDE, SIDE)
    members = [model.sampled(torch.full((model.num_layers,), m)) for m in range(3)]
    assert torch.equal(draw(images), crossmax(torch.stack([one(images) for one in members])))
    assert isinstance(draw, nn.Module)
