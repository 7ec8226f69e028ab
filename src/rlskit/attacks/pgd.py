"""PGD in linf, through torchattacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.upstream import run_torchattacks


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.01,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    generator: torch.Generator,
) -> Tensor:
    """Ascend the cross-entropy by signed steps inside the linf ball; return the last iterate.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"
    (https://arxiv.org/abs/1706.06083).

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        eps: Budget in linf, in [0, 1].
        steps: Number of steps.
        step_size: Length of a step, in [0, 1]; None for `eps / 10` (section 4.2 of the RLS paper).
        random_start: Start at a uniformly random point of the ball.
        generator: Source of the random start.

    Returns:
        Adversarial images in [0, 1], bit-equal to `torchattacks.PGD` on the generator's seed.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    return run_torchattacks(
        "PGD",
        model,
        images,
        labels,
        generator=generator,
        eps=eps,
        alpha=eps / 10 if step_size is None else step_size,
        steps=steps,
        random_start=random_start,
    )
