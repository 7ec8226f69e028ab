"""sigma-zero: Adam on the margin and a smooth count of changed values; small changes are dropped.

Shapes: B images, K classes, D = C·H·W pixel values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlskit.attacks.losses import scaled
from rlskit.attacks.minimum_norm import (
    attack_correct,
    fooled_by,
    keep_better,
    look,
    shortfall,
    wins,
)
from rlskit.attacks.passes import Passes, Setting

DECAYS = (0.9, 0.999)
"""Of Adam's two moments."""


def sigma_zero(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    targeted: bool = False,
    stride: float = 1.0,
    smoothing: float = 0.001,
    threshold: float = 0.3,
    threshold_step: float = 0.01,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Lower the margin and a smooth l0 norm together, and drop what changed by too little.

    Cinà et al. 2024, "sigma-zero: gradient-based optimization of l0-norm adversarial examples",
    algorithm 1 (https://arxiv.org/abs/2402.01879). The threshold under which changes are dropped
    rises where the model is fooled, and falls where it is not.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        steps: Number of steps.
        targeted: Whether the labels are classes to reach.
        stride: Adam's learning rate in the first step; it falls to a tenth along half a cosine.
        smoothing: sigma in `d^2 / (d^2 + sigma)`, by which a change d counts.
        threshold: Changes below it are dropped, at first; in [0, 1] units.
        threshold_step: By how much the threshold moves in a step, as a fraction of the learning
            rate.
        generator: Unused.

    Returns:
        The fooling iterates with the fewest changed values, in [0, 1]; the clean image where the
        attack had succeeded already or where no iterate fooled the model.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """

    def lead(logits: Tensor, own: Tensor) -> Tensor:
        return shortfall(logits, own, targeted).clamp_min(0)

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        x, mean, square = clean, torch.zeros_like(clean), torch.zeros_like(clean)
        best, fewest = clean, torch.full_like(clean[:, 0, 0, 0], math.inf)
        least, rate = torch.full_like(fewest, threshold), stride
        for step in range(1, steps + 1):
            missing, slope = look(model, x, own, lead, targeted)
            fooled, delta = wins(missing, 0), x - clean
            best, fewest = keep_better(best, fewest, x, _changed(delta), fooled)
            slope = slope + _slope_of_count(delta, smoothing)
            slope = scaled(slope)
            slope = slope / slope.abs().amax((1, 2, 3), keepdim=True).clamp_min(0.5)
            mean = mean.lerp(slope, 1 - DECAYS[0])
            square = square.lerp(slope.square(), 1 - DECAYS[1])
            direction = mean / (1 - DECAYS[0] ** step)
            direction = direction / ((square / (1 - DECAYS[1] ** step)).sqrt() + 1e-8)
            moved = (x - rate * direction).clamp(0, 1)
            rate = stride * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2)
            least = (least + torch.where(fooled, 1, -1) * threshold_step * rate).clamp(0, 1)
            kept = (moved - clean).abs() >= least[:, None, None, None]
            x = torch.where(kept, moved, clean)
        fooled = fooled_by(model, x, own, targeted)
        return keep_better(best, fewest, x, _changed(x - clean), fooled)[0]

    return attack_correct(model, images, labels, solve, targeted)


def sigma_zero_passes(_: Setting, *, steps: int, **__: object) -> Passes:
    """Count what `sigma_zero` asks for; every image that it attacks takes all the steps."""
    return Passes(steps + 2, steps)


def _changed(delta: Tensor) -> Tensor:
    """Return how many values of each image changed, `[B]`."""
    return (delta != 0).flatten(1).sum(1).to(delta)


def _slope_of_count(delta: Tensor, smoothing: float) -> Tensor:
    """Return the gradient of the mean over the D values of `d^2 / (d^2 + smoothing)`."""
    slope = 2 * smoothing * delta / (delta.square() + smoothing).square()
    return slope / delta[0].numel()
