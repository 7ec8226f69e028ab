"""MORA: steps against those members of an ensemble that are nearest to being fooled.

Yu, Gao & Xu 2022, "MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing Attack"
(https://arxiv.org/abs/2211.08008). The gradient of a mean prediction is led by the members that
are unsure, those that err already among them: it pushes these ever further, and members that are
still right and could be fooled as well are hardly moved.

Shapes: M members, B images, K classes.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.attacks.ball import direction, inside
from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import margin
from rlskit.attacks.passes import Passes, Setting

FRESH = 0.75
"""Share of a move that is new; the rest is the move before."""


def mora(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 50,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Lower the weighted mean of the members' leads over the ensemble's nearest rival class.

    As the authors' method, whose steps fall evenly from 2 eps, with momentum, except in this: a
    member's weight is the slope of the sigmoid of its lead, without their rescaling of confident
    logits (weights in log space need none), nothing of the mean prediction's own loss is added, and
    the start is the clean image.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`. Its `members`, where it has
            some, are what is attacked (see `rlskit.threat.view.DrawsView`); else it is the only
            one.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Number of steps.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1], for each image the iterate at which the members' mean
        probability leads least.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    members = list(getattr(model, "members", ())) or [model]
    x = previous = best = images.detach().clone()
    least = torch.full_like(images[:, 0, 0, 0], float("inf"), dtype=torch.float32)
    with ExitStack() as watched:
        for member in members:
            watched.enter_context(under_attack(member))
        for step in range(steps + 1):
            x = x.detach().requires_grad_()
            logits = torch.stack([member(x).float() for member in members])
            (slope,) = torch.autograd.grad(reweighed_lead(logits, labels).sum(), x)
            x = x.detach()
            lead = margin(logits.detach().log_softmax(-1).logsumexp(0), labels)
            best = torch.where((lead < least)[:, None, None, None], x, best)
            least = torch.minimum(lead, least)
            length = 2 * eps * (1 - step / steps)
            aim = inside(images, x - length * direction(slope, norm, steepest=True), norm, eps)
            fresh = FRESH if step else 1.0
            moved = x + fresh * (aim - x) + (1 - fresh) * (x - previous)
            x, previous = inside(images, moved, norm, eps), x
    return best


def reweighed_lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of the members' leads, weighted by how near each is to being fooled, `[B]`.

    The lead d is that of the label over the class that is its nearest rival in the members' mean
    probability. A member that errs weighs nothing, another one in proportion to
    sigmoid(d) sigmoid(-d), which is held constant; where all err, they weigh the same.

    Args:
        logits: `[M, B, K]`.
        labels: Long `[B]`.
    """
    own = labels[None, :, None].expand(len(logits), -1, 1)
    mean = logits.detach().log_softmax(-1).logsumexp(0)
    rival = mean.scatter(1, labels[:, None], float("-inf")).argmax(1)
    rivals = rival[None, :, None].expand(len(logits), -1, 1)
    leads = (logits.gather(2, own) - logits.gather(2, rivals)).squeeze(2)
    weights = F.logsigmoid(leads.detach()) + F.logsigmoid(-leads.detach())
    right = logits.argmax(-1) == labels
    weights = weights.masked_fill(~right, float("-inf"))
    weights = torch.where(right.any(0), weights, 0).softmax(0)
    return (weights * leads).sum(0)


def mora_passes(_: Setting, *, steps: int, **__: object) -> Passes:
    """Count what `mora` asks for."""
    return Passes(steps + 1, steps + 1)
