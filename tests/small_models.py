"""A tiny network, models built from it, and real digits at their own 8x8 pixels."""

from __future__ import annotations

from collections.abc import Callable

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
    """A model that learned the digits in a second or two."""
    banked = model(banks, defense)
    train(
        banked, digits(400, "train"),
        epochs=8, lr=0.1, batch_size=40, schedule="cosine", bn_batches=5,
    )  # fmt: skip
    return banked
