"""CrossMax: an ensemble that answers by ranks (Fort & Lakshminarayanan 2024, arXiv 2408.05446).

Its members are trained separately. The one draw there is takes, class by class, the median over
the members of logits that count from each member's highest and then from each class's highest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.models.banks import BankedModel, Classifier


class CrossMaxDraw(nn.Module):
    """The ensemble as one classifier, with no randomness to begin with, in whatever mode.

    Args:
        members: At least one.
    """

    def __init__(self, members: list[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def train(self, mode: bool = True) -> CrossMaxDraw:  # noqa: ARG002
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return what stands for logits, `[B, classes]`."""
        return crossmax(torch.stack([member(images) for member in self.members]))


def crossmax(logits: Tensor) -> Tensor:
    """Return the robust aggregate `[B, classes]` of logits `[M, B, classes]` (algorithm 1)."""
    by_member = logits - logits.amax(2, keepdim=True)
    by_class = by_member - by_member.amax(0, keepdim=True)
    return by_class.median(0).values


def draw(model: BankedModel, classifier: Classifier, seed: int) -> nn.Module:  # noqa: ARG001
    """Return the one draw there is."""
    plans = (torch.full((model.num_layers,), bank) for bank in range(model.num_banks))
    return CrossMaxDraw([model.sampled(plan) for plan in plans])
