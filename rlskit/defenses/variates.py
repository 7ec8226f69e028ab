"""The random numbers of a defense: fixed ones for a draw, fresh ones for a training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rlskit import seeds
from rlskit.seeds import Purpose


class Variates(Protocol):
    """Gives random tensors, one after the other, while a network runs once."""

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return standard normal numbers to be broadcast with `shape`, whose first is the batch."""

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uniform numbers in [0, 1), likewise."""

    def choices(self, count: int) -> list[float]:
        """Return uniform numbers in [0, 1) to decide by: of the CPU, as none waits for a GPU's."""


class Fresh:
    """Other numbers for every training step and every image, from torch's global generator.

    A training seeds that one, and gives it back as it was. Normal numbers are windows, at random
    places, of one stock that is twice as long as the largest window: drawing all of them anew for
    every convolution would cost a third of a small network's training step.
    """

    def __init__(self) -> None:
        self._stock = torch.empty(0)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[B, ...]`."""
        count = math.prod(shape)
        if len(self._stock) < 2 * count or self._stock.dtype != like.dtype:
            self._stock = torch.randn(2 * count, device=like.device, dtype=like.dtype)
        first = int(torch.randint(len(self._stock) - count + 1, ()))
        return _in_layout(self._stock[first : first + count], shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[B, ...]`."""
        return torch.rand(tuple(shape), device=like.device, dtype=like.dtype)

    def choices(self, count: int) -> list[float]:
        """Return as many numbers, the same for all images of a batch."""
        return _listed(self, count)


def _listed(variates: Variates, count: int) -> list[float]:
    like = torch.empty(0, dtype=torch.float32, device="cpu")
    found: list[float] = variates.uniform((1, count), like)[0].tolist()
    return found


def _in_layout(numbers: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return numbers in a shape, in memory as `like` is: a sum of two layouts takes far longer."""
    if len(shape) == 4 and like.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = shape
        return numbers.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return numbers.view(tuple(shape))


class Fixed:
    """The numbers of one draw: the same in every pass, and for every image of a batch.

    What is asked for first, second and so on in a pass is a function of the seed, its place in that
    order and its shape. It is sampled on the CPU, so that every device gets the same.

    Args:
        seed: From `rlskit.seeds.derive`.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._place = 0
        self._kept: dict[tuple[object, ...], Tensor] = {}

    @property
    def asked(self) -> int:
        """How many tensors this pass has asked for."""
        return self._place

    def begin(self) -> None:
        """Start another pass."""
        self._place = 0

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[1, ...]`."""
        return self._get(torch.randn, shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[1, ...]`."""
        return self._get(torch.rand, shape, like)

    def choices(self, count: int) -> list[float]:
        """Return as many numbers."""
        return _listed(self, count)

    def _get(self, sample: Callable[..., Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
        place, self._place = self._place, self._place + 1
        key = (place, sample, *shape[1:], like.dtype, like.device)
        if key not in self._kept:
            generator = seeds.generator(self._seed, Purpose.VARIATES, place)
            size = (1, *shape[1:])
            numbers = sample(size, generator=generator, dtype=torch.float32, device="cpu")
            self._kept[key] = numbers.to(like)
        return self._kept[key]
