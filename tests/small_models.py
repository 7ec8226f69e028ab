"""The small networks that several tests share, models built from one, and generators."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from rlskit.data import Data, load
from rlskit.models.architecture import Architecture
from rlskit.models.banks import BankedModel, Card
from rlskit.models.partition import Layer, Partition
from rlskit.models.trace import tensor_names
from rlskit.pixels import Pixels
from rlskit.training import train

PIXELS = Pixels(1, 8, 8, (0.3,), (0.4,))


def network(seed: int, *, batch_norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """A convolution and a linear layer: `[B, 1, 8, 8]` to `[B, 10]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Dropout(dropout),
            nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        )


def model(
    banks: int = 2,
    defense: str = "rls",
    *,
    layers: int = 2,
    trained: bool = True,
    build: Callable[[int], nn.Module] = network,
) -> BankedModel:
    """A model of `banks` differently initialised networks, in two layers or in one."""
    networks = [build(seed) for seed in range(banks)]
    names = tuple(tensor_names(networks[0]))
    last = tuple(name for name in names if name.startswith("6."))
    first = tuple(name for name in names if name not in last)
    parts = (Layer("0", first), Layer("6", last)) if layers == 2 else (Layer("model", names),)
    card = Card(
        architecture=Architecture("own", "small_models.py:network", digest="none"),
        pixels=PIXELS,
        classes=10,
        defense=defense,
        data="digits",
        pretrained="a test" if trained else "",
    )
    granularity = "layer" if layers == 2 else "model"
    return BankedModel(networks, Partition(granularity, parts), card).eval()


def digits(limit: int = 40, split: str = "test") -> Data:
    return load("digits", split, limit=limit)


def plan_of(draw: nn.Module, banked: BankedModel) -> tuple[int, ...]:
    """Say which bank each layer of a draw comes from, by its tensors."""
    found = tensor_names(draw.network)  # type: ignore[arg-type]
    banks = banked.bank_tensors()
    plan = []
    for layer in banked.partition.layers:
        fits = [
            m
            for m, bank in enumerate(banks)
            if all(torch.equal(found[name], bank[name]) for name in layer.tensors)
        ]
        assert len(fits) == 1
        plan += fits
    return tuple(plan)


def weights(banked: BankedModel) -> list[Tensor]:
    """Copies of all tensors of all banks."""
    return [t.detach().clone() for bank in banked.bank_tensors() for t in bank.values()]


def tensor(banked: BankedModel, bank: int, name: str) -> Tensor:
    """A tensor of one bank, to be broken in place."""
    return banked.bank_tensors()[bank][name].data


def trained(defense: str, banks: int) -> BankedModel:
    """A model that learned the digits, and is the caller's own."""
    return copy.deepcopy(_trained(defense, banks))


@cache
def _trained(defense: str, banks: int) -> BankedModel:
    banked = model(banks, defense)
    train(
        banked, digits(400, "train"),
        epochs=8, lr=0.1, batch_size=40, schedule="cosine", bn_batches=5,
    )  # fmt: skip
    return banked


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


class Curved(nn.Module):
    """Far from linear, with a layer whose mode matters; its logits come out times `factor`."""

    def __init__(self, factor: float = 1.0, roughness: float = 0.5) -> None:
        super().__init__()
        self.inner = roughness * torch.randn(64, 40, generator=generator(2))
        self.outer = torch.randn(40, 10, generator=generator(3))
        self.dropout, self.factor = nn.Dropout(0.5), factor

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.dropout(((images.flatten(1) - 0.5) @ self.inner).tanh())
        return self.factor * (features @ self.outer)


class Recurrent(nn.Module):
    """An LSTM over rows, which keeps a second list of its weights: `[B, 1, 4, 4]` to logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.rows = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rows(images[:, 0])[0][:, -1])
        return logits
