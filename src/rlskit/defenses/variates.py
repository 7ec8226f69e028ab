"""The random numbers of a defense: fixed ones for a draw, fresh ones for a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rlskit import seeds


class Variates(Protocol):
    """Gives random tensors, one after the other, while a network runs once."""

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return standard normal numbers to be broadcast with `shape`, whose first is the batch."""

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uniform numbers in [0, 1), likewise."""


class Fresh:
    """Other numbers at every call and for every image, from torch's global generator.

    A training seeds that one, and gives it back as it was.
    """

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[B, ...]`."""
        return _in_layout(torch.randn, shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return `[B, ...]`."""
        return _in_layout(torch.rand, shape, like)


def _in_layout(sample: Callable[..., Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return numbers that lie in memory as `like` does: a sum of two layouts takes far longer."""
    if len(shape) == 4 and like.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = shape
        flat = sample((batch, height, width, channels), device=like.device, dtype=like.dtype)
        return flat.permute(0, 3, 1, 2)
    return sample(tuple(shape), device=like.device, dtype=like.dtype)


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

    def _get(self, sample: Callable[..., Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
        place, self._place = self._place, self._place + 1
        key = (place, sample, *shape[1:], like.dtype, like.device)
        if key not in self._kept:
            generator = seeds.generator(self._seed, "variates", place)
            self._kept[key] = sample((1, *shape[1:]), generator=generator).to(like)
        return self._kept[key]
