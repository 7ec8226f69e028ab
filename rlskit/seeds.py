"""Randomness: every draw is a pure function of (seed, purpose, indices), never of global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed that depends on nothing but the arguments.

    Args:
        seed: The user's `--seed`.
        purpose: What the randomness is for, so that no two uses share a stream.
        indices: For example the repeat and the index of the draw.
    """
    key = "|".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return a fresh CPU generator seeded with `derive(seed, purpose, *indices)`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, *indices))
