"""Carlini & Wagner's l2 attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import attack_correct, keep_better, margin, search_constant, wins

SHRINK = 0.999999
"""Images are shrunk by this before atanh, so that pixels at 0 and 1 are finite and can move."""


def cw(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    c: float = 0.01,
    kappa: float = 0.1,
    steps: int = 1000,
    lr: float = 0.01,
    search_steps: int = 1,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Minimise `|x' - x|^2 + c max(margin, -kappa)` over tanh space with Adam.

    Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-A
    (https://arxiv.org/abs/1608.04644). An image succeeds where its margin is at most `-kappa`; of
    all iterates that do, the one with the smallest l2 distance is returned. Every image runs all
    steps, whatever happens to the others.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        c: Weight of the margin; with more than one search step the first that is tried.
        kappa: Confidence: by how much another logit must lead.
        steps: Adam steps per constant.
        lr: Adam's learning rate, in tanh space.
        search_steps: Number of constants tried per image by binary search; 1 keeps `c`.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1]; the clean image where it was misclassified already or where
        no iterate succeeded.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        return search_constant(
            lambda constants: _descend(model, clean, own, constants, kappa, steps, lr),
            clean,
            c,
            search_steps,
        )

    return attack_correct(model, images, labels, solve)


def _descend(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    constants: Tensor,
    kappa: float,
    steps: int,
    lr: float,
) -> tuple[Tensor, Tensor]:
    """Return each image's nearest success and its squared l2 distance (inf: none)."""
    w = torch.atanh((2 * clean - 1) * SHRINK).requires_grad_()
    adam = torch.optim.Adam([w], lr=lr)
    best, best_distance = clean, torch.full_like(constants, float("inf"))
    for _ in range(steps):
        x = (w.tanh() + 1) / 2
        distance = (x - clean).flatten(1).square().sum(1)
        lead = margin(model(x), labels)
        loss = distance + constants * lead.clamp_min(-kappa)
        (w.grad,) = torch.autograd.grad(loss.sum(), w)
        adam.step()
        best, best_distance = keep_better(
            best, best_distance, x.detach(), distance.detach(), wins(lead.detach(), kappa)
        )
    return best, best_distance
