"""The plain ("base") ensemble of section 4.6: M networks trained separately, one of them attacked.

It is RLS at granularity `model`, except that N draws are the members in random order, without
replacement: N = M is the whole ensemble, each member once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlskit import seeds
from rlskit.models.banks import BankedModel
from rlskit.seeds import Purpose


def plan(
    model: BankedModel, seed: int, purpose: Purpose, repeat: int, index: int, *image: int
) -> Tensor:
    """Return the plan of the member whose turn it is: each comes once in every M draws."""
    order = torch.randperm(
        model.num_banks, generator=seeds.generator(seed, purpose, repeat, *image)
    )
    return torch.full((model.num_layers,), int(order[index % model.num_banks]))


def group(model: BankedModel, size: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Return every member's plan, long `[M, L]`: each training step updates all of them."""
    return torch.arange(model.num_banks)[:, None].expand(-1, model.num_layers)


def members(model: BankedModel) -> int:
    """Return M, the number of networks."""
    return model.num_banks
