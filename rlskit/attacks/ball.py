"""The ball of a norm: steps of length 1 in it, projection onto it, random points inside it.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlskit.attacks.losses import scaled
from rlskit.attacks.randomness import image_generators, normal, rand, uniform
from rlskit.seeds import Purpose

TINY = 1e-10
"""Least norm that is divided by: where there is no gradient, nothing moves.

Gradients are scaled first, so that there is none where this is more than the norm.
"""


def direction(slope: Tensor, norm: str, steepest: bool) -> Tensor:
    """Return the step of length 1 along the gradient or its sign."""
    if norm == "linf" and steepest:
        return slope.sign()
    if norm == "linf":
        slope = scaled(slope)
        return slope / slope.abs().amax((1, 2, 3), keepdim=True).clamp_min(TINY)
    slope = scaled(slope) if steepest else slope.sign()
    return slope / (_l2(slope) + TINY)


def inside(clean: Tensor, points: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Return points projected onto the ball around the clean images, then onto the box."""
    return (clean + _onto_ball(points - clean, norm, eps)).clamp_(0, 1)


def _onto_ball(delta: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Return the nearest perturbation inside the ball, or each in its own `[B, 1, 1, 1]`."""
    if norm == "linf" and not isinstance(eps, Tensor):
        return delta.clamp(-eps, eps)  # several times as fast as a tensor of the number
    radius = torch.as_tensor(eps, dtype=delta.dtype, device=delta.device)
    if norm == "linf":
        return delta.clamp(-radius, radius)
    return delta * (radius / _l2(delta).clamp_min(TINY)).clamp_max(1)


def noise_inside(
    images: Tensor, norm: str, eps: float, generator: torch.Generator, restart: int
) -> Tensor:
    """Return a random perturbation inside the ball, each image's from its own stream."""
    streams = image_generators(images, generator, Purpose.START, restart)
    if norm == "linf":
        return uniform(images, streams, eps)
    delta = normal(images, streams)
    share = rand((1, 1, 1), streams)
    return delta * (share.to(images) / _l2(delta) * eps)


def _l2(delta: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norms[:, None, None, None]
