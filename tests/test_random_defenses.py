"""Defenses that change images, weights or the answer, each against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import small_models
from rlskit.conversion import convert
from rlskit.defenses import draws
from rlskit.defenses.crossmax import crossmax
from rlskit.defenses.drawing import check_effect
from rlskit.defenses.perturbed import Intercept
from rlskit.defenses.random_bits import quantized
from rlskit.defenses.random_norm import group_sizes
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.training import TrainOptions
from rlskit.training.batch_norm import reestimate_batch_norm

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
        raise KeyboardInterrupt

    for draw in draws(model, count, seed=0, purpose="attacker"):
        with pytest.raises(KeyboardInterrupt), Intercept((F.conv2d,), noted):
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


def _flat(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))


def normed(largest: float) -> tuple[BankedModel, nn.BatchNorm2d, list[Tensor], list[Tensor]]:
    """Return a model, its one BatchNorm, and what that one reads and gives from now on."""
    banked = small_models.model(1, "random-norm")
    banked.card.settings = {"largest_group": largest}
    assert not banked.lone_twice  # which it tries but once
    norm = banked.banks[0][2]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    read: list[Tensor] = []
    given: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, images: read.append(images[0].detach()))
    norm.register_forward_hook(lambda _, __, found: given.append(found.detach()))
    return banked, norm, read, given


def test_random_norm_is_one_of_the_normalisations_with_the_weights_of_the_batch() -> None:
    """A draw has the BatchNorm's statistics or its image's, of 1 or of 2 channels, a third each."""
    banked, norm, read, given = normed(2)
    images = torch.rand(2, 1, 8, 8)
    for draw in draws(banked, 300, seed=0, purpose="attacker"):
        draw(images)
    found, shown = given[:], read[0]
    kinds = [F.group_norm(shown, groups, norm.weight, norm.bias, norm.eps) for groups in (6, 3)]
    kinds.append(norm(shown))
    counts = [sum(torch.allclose(one, kind, atol=1e-5) for one in found) for kind in kinds]
    assert sum(counts) == 300
    assert all(70 < count < 130 for count in counts), counts


def test_random_norm_keeps_the_statistics_up_whichever_it_chooses() -> None:
    banked, norm, read, _ = normed(1)
    options = TrainOptions(bn_batches=8, batch_size=10)
    reestimate_batch_norm(banked, small_models.digits(80, "train"), options)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(read).mean((0, 1, 3, 4)))


def test_random_norm_needs_a_batch_norm_and_leaves_something_of_a_single_pixel() -> None:
    assert group_sizes(torch.zeros(1, 12, 1, 1), 8) == [2, 4]
    assert group_sizes(torch.zeros(1, 12, 3, 3), 1) == [1]
    with pytest.raises(RequestError, match="finds nothing to act on"):
        convert("test_vit", defense="random-norm")
    flat = small_models.model(1, "random-norm", build=_flat, layers=1)
    flat.card.settings = {"largest_group": 1.0}  # of one number each
    with pytest.raises(RequestError, match="finds nothing to act on"):
        check_effect(flat)
    with pytest.raises(RequestError, match="largest_group of `settings` is a whole number"):
        converted("random-norm", largest_group=0.5)
