"""Random Layer Sampling (paper, section 3.1): every layer from a bank chosen uniformly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.models.banks import BankedModel

SAMPLES = 10
"""N, the draws whose mean answers (section 4.2)."""


def sample_plan(model: BankedModel, generator: torch.Generator) -> Tensor:
    """Draw a plan, long `[L]`, from the categorical of eq. 2 with mu = 1/M."""
    return torch.randint(model.num_banks, (model.num_layers,), generator=generator)


def draw(model: BankedModel, seed: int, purpose: str, repeat: int, index: int) -> nn.Module:
    """Return the sampled model of this key."""
    return model.sampled(sample_plan(model, seeds.generator(seed, purpose, repeat, index)))


def group(model: BankedModel, size: int, generator: torch.Generator) -> Tensor:
    """Return the K independent plans of one training step, long `[K, L]`."""
    return torch.stack([sample_plan(model, generator) for _ in range(size)])
