"""JSMA: a few pixel values, chosen by the Jacobian's saliency map, are pushed to their end.

torchattacks' version aims at `(label + 1) % 10` whatever the number of classes, compares all D^2
pairs of values in memory, takes one backward pass per class, and returns its failures; so this one
is written from the paper.

Shapes: B images, K classes, D = C·H·W pixel values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import margin
from rlskit.attacks.passes import Passes, Setting

SPENT = 0.01
"""A value this near to the end that it would be moved to is left alone, as in torchattacks."""


def jsma(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    theta: float = 1.0,
    gamma: float = 0.1,
    targeted: bool = False,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Change the two values with the greatest saliency, until the label changes.

    Papernot et al. 2016, "The limitations of deep learning in adversarial settings", algorithms 2
    and 3 (https://arxiv.org/abs/1511.07528), on logits. The method needs a class to aim at, also
    where any label other than the own is a success.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        theta: What is added to a chosen value, in [-1, 1]; 1 or -1 puts it to its end.
        gamma: Fraction of the D values that may change.
        targeted: Aim at the labels, and not at the clean image's runner-up.
        generator: Unused.

    Returns:
        Images in [0, 1], at most `gamma * D` values of each changed; the clean image where the
        attack had succeeded already, where no pair of values helps, or where none was enough.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    result, x = images.detach().clone(), images.detach()
    active = torch.arange(len(x), device=x.device)
    pairs = _pairs(gamma, x[:1].numel())
    with under_attack(model):
        targets = labels if targeted else _runner_up(model, x, labels)
        for step in range(pairs + 1):
            logits = model(x.requires_grad_())
            lead = margin(logits.detach(), labels)
            reached = lead > 0 if targeted else lead < 0
            result[active[reached]] = x.detach()[reached]
            if step == pairs or reached.all():
                break
            pair, helps = _most_salient_pair(logits, x, targets, theta)
            left = ~reached & helps
            x = _add(x.detach()[left], pair[left], theta)
            active, labels, targets = active[left], labels[left], targets[left]
            if not len(x):
                break
    return result


def _pairs(gamma: float, values: int) -> int:
    """Return how many pairs of values may change."""
    return int(gamma * values + 1e-6) // 2


def jsma_passes(setting: Setting, *, gamma: float, **_: object) -> Passes:
    """Count what `jsma` asks for where it never succeeds."""
    pairs = _pairs(gamma, math.prod(setting.shape))
    return Passes(pairs + 2, 2 * pairs)


@torch.no_grad()
def _runner_up(model: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
    """Return the class other than the label with the greatest logit, `[B]`."""
    logits: Tensor = model(clean)
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def _add(x: Tensor, pair: Tensor, theta: float) -> Tensor:
    step = torch.full_like(pair, theta, dtype=x.dtype)
    moved = x.flatten(1).scatter_add(1, pair, step)
    return moved.clamp(0, 1).reshape(x.shape)


def _most_salient_pair(
    logits: Tensor, x: Tensor, targets: Tensor, theta: float
) -> tuple[Tensor, Tensor]:
    """Return the pair of values `[B, 2]` with the greatest saliency, and where there is one.

    A pair's saliency is its sum of slopes of the target's logit times its fall of the sum of the
    other logits, where both are positive (equations 8 to 10). It grows in both factors, so a value
    that two others surpass in both is in no best pair, or in one that another equals: few of the
    D values are left to pair. The sums need two backward passes, however many classes there are.
    """
    own = logits.gather(1, targets[:, None]).sum()
    (rise,) = torch.autograd.grad(own, x, retain_graph=True)
    (fall,) = torch.autograd.grad(own - logits.sum(), x)
    sign = 1 if theta > 0 else -1
    spent = (x.detach() > 1 - SPENT) if theta > 0 else (x.detach() < SPENT)
    rise, fall = (
        (sign * slope.double()).masked_fill(spent, -torch.inf).flatten(1) for slope in (rise, fall)
    )
    candidates = _surpassed_by_at_most_one(rise, fall)
    rise, fall = rise.gather(1, candidates), fall.gather(1, candidates)
    rises, falls = (part[:, :, None] + part[:, None, :] for part in (rise, fall))
    once = torch.ones_like(rises, dtype=torch.bool).triu(1)
    saliency = torch.where(once & (rises > 0) & (falls > 0), rises * falls, 0).flatten(1)
    best = saliency.argmax(1, keepdim=True)
    width = candidates.shape[1]
    pair = torch.cat([best // width, best % width], 1)
    return candidates.gather(1, pair), saliency.amax(1) > 0


def _surpassed_by_at_most_one(rise: Tensor, fall: Tensor) -> Tensor:
    """Return the indices `[B, m]` of the values that fewer than two others equal in both.

    `m` is the largest count of all images; the others' rows are filled up with further values.
    """
    order = rise.argsort(dim=1, descending=True, stable=True)
    falls = fall.gather(1, order)
    before = torch.full_like(falls[:, :1], -torch.inf)
    first = torch.cat([before, falls.cummax(1).values[:, :-1]], 1)
    second = torch.cat([before, falls.minimum(first).cummax(1).values[:, :-1]], 1)
    kept = falls > second
    width = max(2, int(kept.sum(1).max()))
    ahead = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order.gather(1, ahead)
