"""Adversarial training: every step is taken on images that PGD found (Madry et al. 2018).

The inner attacker ascends the loss of the mean prediction of K draws, fresh ones at every step, as
the outer step does; of members that are trained separately, each has an attacker of its own. Its
loss is the log odds, which have the direction of the cross-entropy and do not saturate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlskit.attacks.guard import require_path, slope_of
from rlskit.attacks.losses import log_odds
from rlskit.defenses import training_logits
from rlskit.defenses.answers import mean_log_probabilities
from rlskit.models.banks import BankedModel
from rlskit.training.ranks import Share
from rlskit.training.train_options import TrainOptions


def pgd_images(
    model: BankedModel,
    images: Tensor,
    labels: Tensor,
    *,
    group: Callable[[], Tensor],
    options: TrainOptions,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Return what PGD makes of a batch, `[B, C, H, W]`, with a random start in the linf ball.

    The model is attacked in eval mode and left in it.

    Args:
        model: Attacked with its defense on, as in training.
        images: `[B, C, H, W]` in [0, 1].
        labels: `[B]`.
        group: Gives the plans to attack, long `[K, L]`, anew for every step.
        options: `adversarial_eps`, `adversarial_steps`, `adversarial_step_size`.
        generator: Of the random start.
        share: Which of a batch these are; all by default.
    """
    eps, step_size = float(options.adversarial_eps), float(options.adversarial_step_size)
    model.eval()
    share = Share.of(len(images)) if share is None else share
    start = 2 * share.drawn(images.shape[1:], generator) - 1
    changed = (images + eps * start.to(images)).clamp(0, 1)
    for _ in range(options.adversarial_steps):
        with torch.enable_grad():
            changed.requires_grad_()
            plans = group()
            logits = torch.stack([training_logits(model, changed, plan) for plan in plans]).float()
            require_path(logits)
            loss = log_odds(mean_log_probabilities(logits), labels).sum()
            gradient = slope_of(loss, changed)
        changed = changed.detach() + step_size * gradient.sign()
        changed = torch.clamp(changed, images - eps, images + eps).clamp(0, 1)
    return changed
