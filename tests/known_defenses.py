"""Defenses whose robustness is known: honest ones, and the classic ways to look robust."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.conversion import convert
from rlskit.defenses import draws
from rlskit.models.banks import BankedModel
from rlskit.training import train

EPS = 0.1
"""A budget that fools the undefended network on most digits, and the trained one on some."""


def small(num_classes: int = 10) -> nn.Sequential:
    """Two convolutions and a linear layer: `[B, 1, 8, 8]` to `[B, 10]`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )


class Restless(nn.Sequential):
    """Half of the features are dropped in every mode."""

    def forward(self, images: Tensor) -> Tensor:
        for part in self:
            images = part(images)
        return F.dropout(images, 0.5, training=True)


def restless(num_classes: int = 10) -> nn.Sequential:
    """The same network, with randomness that nobody switches off."""
    *body, head = small(num_classes)
    return nn.Sequential(Restless(*body), head)


@cache
def trained(
    defense: str = "none", *, adversarially: bool = False, factory: str = "small"
) -> BankedModel:
    """A model trained on the digits at their own 8 x 8 pixels, which nobody may change."""
    loud = {"init_sigma": 0.4, "inner_sigma": 0.4} if defense == "rse" else None
    model = convert(
        f"{__file__}:{factory}", defense=defense, data="digits", image_size=8, settings=loud
    )
    options: dict[str, Any] = {"epochs": 6}
    if adversarially:
        options = {
            "epochs": 6, "adversarial": "pgd", "adversarial_eps": EPS, "adversarial_steps": 3,
            "adversarial_step_size": 0.05,
        }  # fmt: skip
    train(model, "digits", lr=0.05, batch_size=64, holdout=0.0, bn_batches=10, **options)
    return model


def undefended() -> nn.Module:
    """The undefended network as an ordinary module."""
    return draws(trained(), 1, seed=0, purpose="defender")[0]


class Wrapped(nn.Module):
    """A network with something done to its input and to its logits."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.network = network
        self.before = before
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.network(self.before(images)))


def quantised() -> nn.Module:
    """Pixels are rounded to four levels: no gradient passes (Buckman et al. 2018 in spirit)."""
    return Wrapped(undefended(), before=lambda images: (3 * images).round() / 3)


def saturated() -> nn.Module:
    """Logits through a sigmoid far out in its flat parts: the same classes, gradients of 0."""

    def squash(logits: Tensor) -> Tensor:
        middle = logits.topk(2, dim=1).values.mean(1, keepdim=True).detach()
        return 2 * (300 * (logits - middle)).sigmoid() - 1  # what ends in a sigmoid is undone

    return Wrapped(undefended(), after=squash)


def distilled() -> nn.Module:
    """Logits times 1000: the softmax is exactly one-hot (Carlini & Wagner 2016 on distillation)."""
    return Wrapped(undefended(), after=lambda logits: 1000 * logits)


class Noise(nn.Module):
    """Gaussian noise on the input, by a random network or only in train mode."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images + self.sigma * torch.randn_like(images))
        return logits


class Dropped(nn.Module):
    """Pixels are dropped at test time, too; `frozen` where eval mode ends it."""

    def __init__(self, network: nn.Module, p: float, *, frozen: bool) -> None:
        super().__init__()
        self.network = network
        self.p = p
        self.frozen = frozen

    def forward(self, images: Tensor) -> Tensor:
        active = self.training or not self.frozen
        logits: Tensor = self.network(F.dropout(images, self.p, training=active))
        return logits
