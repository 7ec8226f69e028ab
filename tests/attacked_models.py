"""Models whose worst case is known, and ones that are hard to attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SHAPE = (3, 4, 4)
DUAL = {"linf": 1.0, "l2": 2.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plane(nn.Module):
    """Logits W (x - 0.5) + b: near 0.5 class 0 leads, class 1 follows, the others are far off."""

    def __init__(self, classes: int = 2, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        rng = generator(seed)
        self.weight = nn.Parameter(0.2 * torch.randn(classes, math.prod(shape), generator=rng))
        self.bias = nn.Parameter(-4.0 * torch.arange(classes))
        with torch.no_grad():
            self.bias[:2] = torch.tensor([0.2, 0.1])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (images.flatten(1) - 0.5) @ self.weight.T + self.bias
        return logits

    def normal(self) -> Tensor:
        """The direction in which class 1's logit gains most on class 0's, `[C * H * W]`."""
        return (self.weight[1] - self.weight[0]).detach()

    def distance(self, norm: str) -> float:
        """How far each of `images` is from class 1's region, in `linf` or `l2`."""
        length = torch.linalg.vector_norm(self.normal(), DUAL[norm])
        return 0.1 / float(length)

    def images(self, n: int = 8) -> tuple[Tensor, Tensor]:
        """Images near 0.5, where all optima lie inside [0, 1], and their labels: 0."""
        normal = self.normal()
        offsets = 0.02 * torch.randn(n, len(normal), generator=generator(5))
        offsets -= (offsets @ normal)[:, None] * normal / normal.square().sum()
        return (0.5 + offsets).reshape(n, *SHAPE), torch.zeros(n, dtype=torch.long)


class Waves(nn.Module):
    """Sines of random projections: gradients turn within a step, unlike those of a plane."""

    def __init__(self, classes: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        rng = generator(seed)
        self.inner = nn.Parameter(2.0 * torch.randn(math.prod(shape), 40, generator=rng))
        self.outer = nn.Parameter(torch.randn(40, classes, generator=rng))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.inner).sin() @ self.outer


class Net(nn.Module):
    """A convolution, BatchNorm and Dropout, whose modes matter, and a linear head."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(SHAPE[0], 8, 3, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(8 * SHAPE[1] * SHAPE[2], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.dropout(self.bn(self.conv(images)).tanh())
        logits: Tensor = self.head(features.flatten(1))
        return logits


class Counting(nn.Module):
    """Counts the images that a model is asked about, per call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        logits: Tensor = self.model(images)
        return logits


class Constant(nn.Module):
    """Class 0 leads everywhere, and every gradient is 0."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(self.classes)
        logits[0] = 1.0
        return logits + 0 * images.flatten(1).sum(1, keepdim=True)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    answer: Tensor = model.eval()(images).argmax(1)
    return answer


def answered(model: nn.Module, n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images, and labels that are the model's own answers."""
    images = torch.rand(n, *SHAPE, generator=generator(seed))
    return images, answers(model, images)


def size(images: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    """The norm of each perturbation, `[B]`."""
    order = {"linf": math.inf, "l2": 2.0}[norm]
    sizes: Tensor = torch.linalg.vector_norm((adversarial - images).double().flatten(1), order, 1)
    return sizes
