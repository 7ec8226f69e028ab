"""FGSM, through torchattacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.upstream import run_torchattacks


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.01,
    generator: torch.Generator,
) -> Tensor:
    """Move every pixel by `eps` along the sign of the cross-entropy's gradient, and clip to [0, 1].

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples"
    (https://arxiv.org/abs/1412.6572).

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        eps: Budget in linf, in [0, 1].
        generator: Unused by the method; what the model draws from the global state comes from it.

    Returns:
        Adversarial images in [0, 1], bit-equal to `torchattacks.FGSM`.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    return run_torchattacks("FGSM", model, images, labels, generator=generator, eps=eps)
