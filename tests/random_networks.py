"""Networks of one's own with randomness in their forward pass, as people bring them."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA = 0.3
"""Standard deviation of the noise of `noise`, in units of the normalised images."""


def body(num_classes: int, in_chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


class Noise(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.body = body(num_classes, in_chans)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x + SIGMA * torch.randn_like(x))
        return logits


class Paths(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.left, self.right = (body(num_classes, in_chans) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.2, training=True)
        logits: Tensor = self.left(x) if random.random() < 0.5 else self.right(x)
        return logits


class Coin(nn.Module):
    """Takes one of two paths, so that in one case of two it answers the same twice."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.left, self.right = (body(num_classes, in_chans) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.left(x) if random.random() < 0.5 else self.right(x)
        return logits


class Resize(Noise):
    def forward(self, x: Tensor) -> Tensor:
        side, most = int(torch.randint(12, 17, ())), 18
        left, top = (random.randint(0, most - side) for _ in range(2))
        x = F.interpolate(x, size=(side, side))
        logits: Tensor = self.body(F.pad(x, (left, most - side - left, top, most - side - top)))
        return logits


class Branches(Noise):
    """It looks at its images' values, so that `torch.vmap` refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.mean() > 0 else x)


def noise(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Noise(num_classes, in_chans)


def paths(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Paths(num_classes, in_chans)


def coin(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Coin(num_classes, in_chans)


def resize(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Resize(num_classes, in_chans)


def branches(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Branches(num_classes, in_chans)


class Quiet(Noise):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class Restless(Noise):
    """Its random numbers come from the system."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x) + random.SystemRandom().random()
        return logits


def quiet(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Quiet(num_classes, in_chans)


def restless(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return Restless(num_classes, in_chans)


def sown(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """A network whose first weights come from NumPy's global generator."""
    network = Quiet(num_classes, in_chans)
    weight = next(network.parameters())
    sown = np.random.standard_normal(weight.shape)  # noqa: NPY002
    weight.data.copy_(torch.from_numpy(sown))
    return network
