"""Randomness of attacks: every image has streams of its own, keyed by its own pixels.

A result may not depend on batch-mates or on the order of images, so nothing is drawn for a batch:
the seed of each stream is a function of the generator's seed, what the numbers are for, and the
image's bytes. The generator's state is neither read nor advanced.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from rlskit import seeds
from rlskit.seeds import Purpose


def image_generators(
    images: Tensor, generator: torch.Generator, purpose: Purpose, *indices: int
) -> list[torch.Generator]:
    """Return one CPU generator per image.

    Args:
        images: The clean images, `[B, C, H, W]`.
        generator: Its seed is the attack's.
        purpose: What the numbers are for.
        indices: For example the restart.
    """
    seed = generator.initial_seed()
    digests = (
        hashlib.blake2b(image, digest_size=16).hexdigest()
        for image in images.detach().cpu().contiguous().numpy()
    )
    return [seeds.generator(seed, purpose, digest, *indices) for digest in digests]


def rand(shape: tuple[int, ...], streams: list[torch.Generator]) -> Tensor:
    """Return numbers uniform in [0, 1), `[B, *shape]`, each image's from its stream.

    Float32 on the CPU, whatever defaults for new tensors the caller set.
    """
    given: Any = {"dtype": torch.float32, "device": "cpu"}
    return torch.stack([torch.rand(shape, generator=stream, **given) for stream in streams])


def uniform(images: Tensor, streams: list[torch.Generator], radius: float = 1.0) -> Tensor:
    """Return numbers uniform in [-radius, radius), shaped as `images`, each from its stream."""
    rows = torch.empty(len(streams), *images.shape[1:], dtype=torch.float32, device="cpu")
    for row, stream in zip(rows, streams, strict=True):
        row.uniform_(-radius, radius, generator=stream)
    return rows.to(images)


def normal(images: Tensor, streams: list[torch.Generator]) -> Tensor:
    """Return standard normal numbers, shaped as `images`, each image's from its stream."""
    rows = torch.empty(len(streams), *images.shape[1:], dtype=torch.float32, device="cpu")
    for row, stream in zip(rows, streams, strict=True):
        row.normal_(generator=stream)
    return rows.to(images)
