"""Random Layer Sampling (paper, section 3.1): every layer from a bank chosen uniformly."""

from __future__ import annotations

import torch
from torch import Tensor

from rlskit import seeds
from rlskit.models.banks import BankedModel
from rlskit.seeds import Purpose

SAMPLES = 10
"""N, the draws whose mean answers (section 4.2)."""


def sample_plan(model: BankedModel, generator: torch.Generator) -> Tensor:
    """Draw a plan, long `[L]`, from the categorical of eq. 2; mu = 1/M unless the model says."""
    if model.card.bank_probs:
        mu = torch.tensor(model.card.bank_probs, dtype=torch.float64)
        return torch.multinomial(mu, model.num_layers, replacement=True, generator=generator)
    return torch.randint(model.num_banks, (model.num_layers,), generator=generator)


def plan(model: BankedModel, seed: int, purpose: Purpose, *indices: int) -> Tensor:
    """Return the plan of this key, long `[L]`."""
    return sample_plan(model, seeds.generator(seed, purpose, *indices))


def group(model: BankedModel, size: int, generator: torch.Generator) -> Tensor:
    """Return the K independent plans of one training step, long `[K, L]`."""
    return torch.stack([sample_plan(model, generator) for _ in range(size)])
