"""No defense: the one network answers, and is what the attacker sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.models.banks import BankedModel


def draw(model: BankedModel, seed: int, purpose: str, repeat: int, index: int) -> nn.Module:  # noqa: ARG001
    """Return the network of bank 0, whatever the key."""
    return model.sampled(torch.zeros(model.num_layers, dtype=torch.long))


def group(model: BankedModel, size: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Return the one plan there is, long `[1, L]`."""
    return torch.zeros(1, model.num_layers, dtype=torch.long)
