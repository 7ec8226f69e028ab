"""GAL's loss by hand (Kariyappa & Qureshi 2019), and what training on it does."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlskit.conversion import convert
from rlskit.defenses import DEFENSES, draws
from rlskit.defenses.gal import alignment, loss, penalty
from rlskit.errors import RequestError
from rlskit.training import train
from small_models import digits, generator, model


def test_alignment_by_hand() -> None:
    gradients = [
        torch.tensor([[1.0, 0, 0], [1e-20, 0, 0]]),
        torch.tensor([[0, 2.0, 0], [3e-20, 0, 0]]),
        torch.tensor([[-3.0, 0, 0], [0, 0, 0]]),
    ]
    wanted = [math.log(2 + math.exp(-1)), math.log(math.e + 2)]  # no gradient is at right angles
    assert alignment(gradients).tolist() == pytest.approx(wanted, rel=1e-5)


def test_penalty_by_hand() -> None:
    """Of two linear classifiers of two classes, whose gradients are W_1 - W_0 for label 0."""
    weights = torch.randn(2, 2, 6, generator=generator())
    images = [torch.rand(3, 1, 2, 3, generator=generator()).requires_grad_() for _ in range(2)]
    labels = torch.tensor([0, 1, 0])
    logits = torch.stack([40 * x.flatten(1) @ w.T for x, w in zip(images, weights, strict=True)])
    normals = weights[:, 1] - weights[:, 0]
    cosine = torch.cosine_similarity(normals[0], normals[1], dim=0)
    found = penalty(logits, labels, images, {"weight": 0.5})  # though p is 1 to rounding
    assert found.item() == pytest.approx(2 * 0.5 * cosine.item(), rel=1e-5)
    alone = [torch.nn.functional.cross_entropy(one, labels) for one in logits]
    assert loss(logits, labels, {}).item() == pytest.approx(torch.stack(alone).sum().item())


def cosine(weight: float) -> float:
    """The mean cosine of two members' gradients after some training with that weight."""
    banked = model(2, "gal")
    banked.card.settings = {"weight": weight}
    train(banked, digits(200, "train"), epochs=4, lr=0.05, batch_size=40, bn_batches=2)
    data = digits(60)
    images, labels = data.images(range(60)), data.labels
    members = draws(banked, 2, seed=0, purpose="attacker")
    one, other = (_slope(member, images, labels) for member in members)
    return float(torch.cosine_similarity(one, other, dim=1).mean())


def _slope(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    value = torch.nn.functional.cross_entropy(member(x), labels, reduction="sum")
    (slope,) = torch.autograd.grad(value, x)
    return slope.flatten(1)


def test_training_turns_the_gradients_away_from_each_other() -> None:
    plain, little, much = cosine(0.0), cosine(0.5), cosine(4.0)
    assert all(more - less > 0.1 for more, less in pairwise((plain, little, much)))


def test_attention_is_differentiated_twice() -> None:
    banked = convert("test_vit", defense="gal", banks=2, num_classes=10)
    found = train(banked, digits(16, "train"), epochs=1, batch_size=16)
    assert math.isfinite(found.epochs[0].loss)


def test_a_network_without_second_derivative_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.sign()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, slope: Tensor) -> Tensor:
            return slope

    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Once.apply(x)  # type: ignore[no-untyped-call]
            return found

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), Signs(), nn.Flatten(), nn.Linear(144, 10)
        )

    banked = model(2, "gal", layers=1, build=build)
    banked.card.settings = dict(DEFENSES["gal"].settings)
    with pytest.raises(RequestError, match="the network cannot be differentiated twice"):
        train(banked, digits(40, "train"), epochs=1, batch_size=40)


def test_one_member_is_refused() -> None:
    with pytest.raises(RequestError, match="compares the gradients of members; give 2 `banks`"):
        convert("test_resnet", defense="gal", banks=1, image_size=16)
