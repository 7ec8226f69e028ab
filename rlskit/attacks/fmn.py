"""FMN: gradient steps within a ball of l2, linf, l1 or l0 whose radius looks for the boundary.

Shapes: B images, K classes, D = C·H·W pixel values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlskit.attacks.losses import scaled, trail
from rlskit.attacks.minimum_norm import (
    NO_LENGTH,
    attack_correct,
    fooled_by,
    keep_better,
    look,
    wins,
)
from rlskit.attacks.passes import Passes, Setting

ORDER = {"l2": 2, "linf": math.inf, "l1": 1, "l0": 0}
"""Norm of the perturbation -> its order."""

DUAL = {"l2": 2, "linf": 1, "l1": math.inf}
"""Norm of the perturbation -> order of the norm that measures the gradient; l0 has none."""

LAST_STEP = 0.01
"""Length of the last step as a fraction of the first's; between them it follows half a cosine."""

LAST_CHANGE = 0.001
"""Fraction by which the radius changes in the last step."""


def fmn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    steps: int = 100,
    overshoot: float = 0.02,
    targeted: bool = False,
    stride: float = 1.0,
    change: float = 0.05,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Climb the margin within a ball whose radius follows the decision boundary.

    Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    algorithm 1 (https://arxiv.org/abs/2102.12827), started at the clean image. Until the model is
    fooled, the radius is the distance of the linearised boundary (in l0, one value and ever more);
    then it falls by a fraction where the model is fooled, and grows by it where it is not. What the
    paper has not is the overshoot: a ball that ends at the boundary of a nearly linear model holds
    nothing that fools it but by rounding.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        norm: The norm that is minimised, `l2`, `linf`, `l1` or `l0` (of values, not of pixels).
        steps: Number of steps.
        overshoot: Fraction by which a ball reaches past the linearised boundary; not in l0.
        targeted: Whether the labels are classes to reach.
        stride: Length of the first step, in l2 and [0, 1] units.
        change: Fraction by which the radius changes in the first step.
        generator: Unused.

    Returns:
        The nearest fooling iterates, in [0, 1]; the clean image where the attack had succeeded
        already or where no iterate fooled the model.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    sign = -1 if targeted else 1

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        x, start = clean, clean.flatten(1)
        farthest = _size(torch.maximum(start, 1 - start), norm)
        radius = torch.ones_like(farthest)
        best, nearest = clean, torch.full_like(farthest, math.inf)
        for step in range(steps):
            missing, slope = look(model, x, own, trail, targeted)
            slope, fooled, delta = slope.flatten(1), wins(missing, 0), x.flatten(1) - start
            best, nearest = keep_better(best, nearest, x, _size(delta, norm), fooled)
            left = (1 + math.cos(math.pi * step / steps)) / 2
            radius = _moved(radius, LAST_CHANGE + (change - LAST_CHANGE) * left, fooled, norm)
            radius = radius.minimum(nearest)
            if norm != "l0":
                boundary = _size(delta, norm) + _distance(missing, slope, norm).to(delta)
                radius = torch.where(nearest.isfinite(), radius, (1 + overshoot) * boundary)
            radius = radius.minimum(farthest)
            slope = sign * scaled(slope.reshape(x.shape)).flatten(1)
            length = stride * (LAST_STEP + (1 - LAST_STEP) * left)
            delta = delta + length * slope / _size(slope, "l2").clamp_min(NO_LENGTH)[:, None]
            delta = PROJECTIONS[norm](delta, radius[:, None])
            x = (start + delta).clamp(0, 1).reshape(x.shape)
        fooled = fooled_by(model, x, own, targeted)
        return keep_better(best, nearest, x, _size(x.flatten(1) - start, norm), fooled)[0]

    return attack_correct(model, images, labels, solve, targeted)


def fmn_passes(_: Setting, *, steps: int, **__: object) -> Passes:
    """Count what `fmn` asks for; every image that it attacks takes all the steps."""
    return Passes(steps + 2, steps)


def _moved(radius: Tensor, rate: float, fooled: Tensor, norm: str) -> Tensor:
    """Return the radius a fraction smaller where the model is fooled, else larger.

    In l0 it is a whole number, changes by one at least, and never comes to 0.
    """
    smaller, larger = radius * (1 - rate), radius * (1 + rate)
    if norm == "l0":
        smaller = smaller.floor().minimum(radius - 1).clamp_min(1)
        larger = larger.floor().maximum(radius + 1)
    return torch.where(fooled, smaller, larger)


def _distance(missing: Tensor, slope: Tensor, norm: str) -> Tensor:
    """Return how far the linearised boundary is, float64 `[B]`; very far without a gradient."""
    steepness = torch.linalg.vector_norm(slope.double(), DUAL[norm], dim=1)
    distance: Tensor = missing.abs() / steepness.clamp_min(torch.finfo(torch.float64).tiny)
    return distance


def _size(delta: Tensor, norm: str) -> Tensor:
    """Return the norms of perturbations `[B, D]`, `[B]`."""
    size: Tensor = torch.linalg.vector_norm(delta, ORDER[norm], dim=1)
    return size


def _onto_l2(delta: Tensor, radius: Tensor) -> Tensor:
    return delta * (radius / _size(delta, "l2").clamp_min(NO_LENGTH)[:, None]).clamp_max(1)


def _onto_linf(delta: Tensor, radius: Tensor) -> Tensor:
    return delta.clamp(-radius, radius)


def _onto_l1(delta: Tensor, radius: Tensor) -> Tensor:
    """Shrink all entries by one amount: the largest that some of the greatest would need."""
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    ranks = torch.arange(1, delta.shape[1] + 1, device=delta.device)
    shrink = ((ordered.cumsum(1) - radius) / ranks).amax(1, keepdim=True).clamp_min(0)
    return delta.sign() * (size - shrink).clamp_min(0)


def _onto_l0(delta: Tensor, radius: Tensor) -> Tensor:
    """Keep as many of the greatest entries as the radius says."""
    order = delta.abs().argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(delta.shape[1], device=delta.device) < radius
    return torch.where(torch.zeros_like(kept).scatter(1, order, kept), delta, 0)


PROJECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": _onto_l2,
    "linf": _onto_linf,
    "l1": _onto_l1,
    "l0": _onto_l0,
}
"""Norm -> (perturbations `[B, D]`, radii `[B, 1]`) -> the nearest ones in that ball."""
