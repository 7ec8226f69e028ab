"""Carlini & Wagner's l2 attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import (
    attack_correct,
    keep_better,
    search_constant,
    shortfall,
    wins,
)
from rlskit.attacks.passes import Passes, Setting

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
    targeted: bool = False,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Minimise `|x' - x|^2 + c max(shortfall, -kappa)` over tanh space with Adam.

    Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-A
    (https://arxiv.org/abs/1608.04644). The shortfall is the label's lead over the best other logit,
    or the best other's over the target. An image succeeds where it is at most `-kappa`; of all
    iterates that do, the one with the smallest l2 distance is returned. Every image runs all steps,
    whatever happens to the others.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: True classes, or target classes, long `[B]`.
        c: Weight of the shortfall; with more than one search step the first that is tried.
        kappa: Confidence: by how much another logit, or the target's, must lead.
        steps: Adam steps per constant.
        lr: Adam's learning rate, in tanh space.
        search_steps: Number of constants tried per image by binary search; 1 keeps `c`.
        targeted: Whether the labels are the classes to reach.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1]; the clean image where it was misclassified, or classified as
        the target, already or where no iterate succeeded.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        return search_constant(
            lambda constants: _descend(model, clean, own, constants, kappa, steps, lr, targeted),
            clean,
            c,
            search_steps,
        )

    return attack_correct(model, images, labels, solve, targeted)


def cw_passes(_: Setting, *, steps: int, search_steps: int, **__: object) -> Passes:
    """Count what `cw` asks for where the model is right."""
    return Passes(1 + search_steps * steps, search_steps * steps)


def _descend(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    constants: Tensor,
    kappa: float,
    steps: int,
    lr: float,
    targeted: bool,
) -> tuple[Tensor, Tensor]:
    """Return each image's nearest success and its squared l2 distance (inf: none)."""
    w = torch.atanh((2 * clean - 1) * SHRINK).requires_grad_()
    adam = torch.optim.Adam([w], lr=lr)
    best, best_distance = clean, torch.full_like(constants, float("inf"))
    for _ in range(steps):
        x = (w.tanh() + 1) / 2
        distance = (x - clean).flatten(1).square().sum(1)
        missing = shortfall(model(x), labels, targeted)
        loss = distance + constants * missing.clamp_min(-kappa)
        (w.grad,) = torch.autograd.grad(loss.sum(), w)
        adam.step()
        best, best_distance = keep_better(
            best, best_distance, x.detach(), distance.detach(), wins(missing.detach(), kappa)
        )
    return best, best_distance
