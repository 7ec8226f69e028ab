"""DDN: a step along the gradient, then onto a sphere that shrinks where the model is fooled.

Shapes: B images, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlskit.attacks.losses import LOSSES, scaled
from rlskit.attacks.minimum_norm import (
    NO_LENGTH,
    attack_correct,
    fooled_by,
    keep_better,
    look,
    wins,
)
from rlskit.attacks.passes import Passes, Setting

LAST_STEP = 0.01
"""Length of the last step; that of the first is 1, and between them it follows half a cosine."""


def ddn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    loss: str = "ce",
    targeted: bool = False,
    radius: float = 1.0,
    change: float = 0.05,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Step along the gradient, and decide the distance from the clean image by itself.

    Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based l2 adversarial
    attacks and defenses", algorithm 1 (https://arxiv.org/abs/1811.09600), without its rounding to
    8 bits. Every iterate lies on a sphere around the clean image, whose radius falls by a fraction
    where the model is fooled, and grows by it where it is not.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        steps: Number of steps.
        loss: A key of `LOSSES`: what a step raises, or lowers when `targeted`.
        targeted: Whether the labels are classes to reach.
        radius: Of the first sphere, in l2 and [0, 1] units.
        change: Fraction by which the radius falls or grows in a step.
        generator: Unused.

    Returns:
        The nearest fooling iterates in l2, in [0, 1]; the clean image where the attack had
        succeeded already or where no iterate fooled the model.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    sign = -1 if targeted else 1

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        x, farthest = clean, _length(torch.maximum(clean, 1 - clean))
        best, nearest = clean, torch.full_like(farthest, math.inf)
        sphere = torch.full_like(farthest, radius)
        for step in range(steps):
            missing, slope = look(model, x, own, LOSSES[loss], targeted)
            fooled, slope = wins(missing, 0), sign * scaled(slope)
            best, nearest = keep_better(best, nearest, x, _length(x - clean), fooled)
            stride = LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * step / steps)) / 2
            delta = x - clean + stride * slope / _wide(_length(slope))
            sphere = torch.where(fooled, (1 - change) * sphere, (1 + change) * sphere)
            sphere = sphere.minimum(farthest)
            x = (clean + delta * _wide(sphere) / _wide(_length(delta))).clamp(0, 1)
        fooled = fooled_by(model, x, own, targeted)
        return keep_better(best, nearest, x, _length(x - clean), fooled)[0]

    return attack_correct(model, images, labels, solve, targeted)


def ddn_passes(_: Setting, *, steps: int, **__: object) -> Passes:
    """Count what `ddn` asks for; every image that it attacks takes all the steps."""
    return Passes(steps + 2, steps)


def _length(delta: Tensor) -> Tensor:
    """Return each image's l2 norm, `[B]`; no less than `NO_LENGTH`."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(NO_LENGTH)
    return length


def _wide(values: Tensor) -> Tensor:
    """Return values per image `[B]` in a shape that broadcasts over images."""
    return values[:, None, None, None]
