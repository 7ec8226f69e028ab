"""What a training step minimises (paper, section 3.2).

Shapes: K sampled models of a group, B images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlskit.defenses.answers import mean_log_probabilities

LOSSES = ("ce", "mse")


def group_loss(logits: Tensor, labels: Tensor, loss: str = "ce", individual: float = 0.0) -> Tensor:
    """Return the loss of a group's mean prediction F = (1/K) sum_k softmax f_k (section 3.2).

    Args:
        logits: `[K, B, classes]`, one slice per sampled model.
        labels: `[B]`.
        loss: `ce` or `mse`, as in `TrainOptions`.
        individual: Weight of the mean of the K single losses.

    Returns:
        A scalar, mean over images.
    """
    together = _loss(mean_log_probabilities(logits), labels, loss)
    if not individual:
        return together
    alone = torch.stack([_loss(one.log_softmax(-1), labels, loss) for one in logits]).mean()
    return (1 - individual) * together + individual * alone


def separate_loss(logits: Tensor, labels: Tensor, loss: str = "ce") -> Tensor:
    """Return the sum of the members' own losses: each is trained as if it were alone."""
    return torch.stack([_loss(one.log_softmax(-1), labels, loss) for one in logits]).sum()


def _loss(log_probabilities: Tensor, labels: Tensor, loss: str) -> Tensor:
    if loss == "ce":
        return F.nll_loss(log_probabilities, labels)
    one_hot = F.one_hot(labels, log_probabilities.shape[-1])
    return (log_probabilities.exp() - one_hot).square().sum(-1).mean()
