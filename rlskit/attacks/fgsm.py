"""FGSM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import gradient, objective
from rlskit.attacks.passes import Passes, Setting


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.01,
    loss: str = "ce",
    eot_samples: int = 1,
    targeted: bool = False,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Move every pixel by `eps` along the sign of the loss's gradient, and clip to [0, 1].

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples"
    (https://arxiv.org/abs/1412.6572). Bit-equal to torchattacks 3.5.1 on
    `ce-saturating`.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        eps: Budget in linf, in [0, 1].
        loss: A key of `rlskit.attacks.losses.LOSSES`.
        eot_samples: Calls of the model whose mean loss is ascended.
        targeted: Descend towards the labels instead.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1].

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    with under_attack(model):
        slope = gradient(model, images, labels, objective(loss, targeted), eot_samples)
    return (images + eps * slope.sign()).clamp(0, 1).detach()


def fgsm_passes(_: Setting, *, eot_samples: int, **__: object) -> Passes:
    """Count what `fgsm` asks for."""
    return Passes(eot_samples, eot_samples)
