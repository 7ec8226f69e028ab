"""Noise: the control that no attack may fall below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, normal, uniform
from rlskit.seeds import Purpose


def noise(
    model: nn.Module,  # noqa: ARG001  the point of it
    images: Tensor,
    labels: Tensor,  # noqa: ARG001
    *,
    eps: float = 0.01,
    distribution: str = "uniform",
    generator: torch.Generator,
) -> Tensor:
    """Add one sample of noise per image, which knows nothing of the model.

    Args:
        model: Never called.
        images: `[B, C, H, W]` in [0, 1].
        labels: Unused.
        eps: Greatest change of a value, in [0, 1] units.
        distribution: `uniform` in [-eps, eps], or `gaussian` with standard deviation eps / 2,
            cut off at -eps and eps, where 4.6 % of its values lie.
        generator: Its seed, the distribution and the image's own pixels fix the sample.

    Returns:
        The noisy images, cut off at 0 and 1.
    """
    sample = uniform if distribution == "uniform" else normal
    spread = eps if distribution == "uniform" else eps / 2
    streams = image_generators(images, generator, Purpose(distribution))
    delta = (spread * sample(images, streams)).clamp(-eps, eps)
    return (images.detach() + delta).clamp(0, 1)


def noise_passes(_: Setting, **__: object) -> Passes:
    """Count what `noise` asks for."""
    return Passes(0, 0)
