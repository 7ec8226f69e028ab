"""APGD in l1: sparse steps, each projected onto the l1 ball and the box at once.

Shapes: B images of C channels and H x W pixels, K classes, D = C·H·W pixel values.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from rlskit.attacks.apgd import assess
from rlskit.attacks.attempts import Found, answer, best_of
from rlskit.attacks.losses import LOSSES, Loss
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, normal
from rlskit.seeds import Purpose

SPARSER = 1.5
"""By what a step changes fewer values than the best point, and by what the step size falls."""

SHORTEST = 0.1
"""The least step size, as a fraction of the first."""

SETTLED = 0.95
"""Where the best point keeps this share of its changes or more, the step size falls."""


def apgd_l1(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 12.0,
    steps: int = 100,
    loss: str = "ce",
    restarts: int = 1,
    eot_samples: int = 1,
    generator: torch.Generator,
) -> Tensor:
    """Ascend the loss of the true label within an l1 ball.

    Croce & Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
    algorithm 1 (https://arxiv.org/abs/2103.01208), in its three balls: 0.3 of the steps are taken
    in one of 3 eps, 0.3 in one of 2 eps, the rest in that of eps, each from what the last found.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        eps: Radius of the ball: the sum of all changes, in [0, 1] units.
        steps: Number of steps of a run, in all three balls together.
        loss: A key of `rlskit.attacks.losses.LOSSES`; the paper's is `ce`.
        restarts: Runs per image, from other starts; an image that was fooled rests.
        eot_samples: Calls of the model that loss, gradient and answer are the mean of.
        generator: Its seed is that of the random starts.

    Returns:
        Where fooled, the last iterate that did it; elsewhere the iterate of highest loss; where the
        model errs on the image itself, that image.

    Raises:
        RequestError: `dlr` with fewer than three classes.
        UntrustedError: Non-finite logits or gradients.
    """
    few = 3 * steps // 10

    def run(restart: int, clean: Tensor, own: Tensor) -> Found:
        streams = image_generators(clean, generator, Purpose.APGD_L1, restart)
        x = clean + normal(clean, streams)
        for radius, share in ((3 * eps, few), (2 * eps, few), (eps, steps - 2 * few)):
            start = project(x, clean, radius)
            found, x = _climb(
                model, clean, own, start, LOSSES[loss], eps=radius, steps=share,
                samples=eot_samples, odds=loss == "ce",
            )  # fmt: skip
        return found

    runs = [partial(run, restart) for restart in range(restarts)]
    return best_of(model, images, labels, lambda classes: runs, eot_samples)  # noqa: ARG005


def apgd_l1_passes(
    _: Setting, *, steps: int, restarts: int, eot_samples: int, **__: object
) -> Passes:
    """Count what `apgd_l1` asks for where it never fools the model."""
    gradients = restarts * (steps + 3) * eot_samples
    return Passes(gradients + eot_samples, gradients)


def project(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the nearest points to `x` in [0, 1] within `eps` of the images in l1.

    All changes shrink by one amount, and end at the box: their sum is a falling, piecewise linear
    function of that amount, which bends at every change, and at every change less its room. Each
    value is rounded towards the image, as thousands of roundings add up to more than the slack.

    Args:
        x: `[B, C, H, W]`.
        images: `[B, C, H, W]` in [0, 1].
        eps: Radius of the ball.
    """
    clean = images.flatten(1).double()
    delta = x.flatten(1).double() - clean
    size, room = delta.abs(), torch.where(delta > 0, 1 - clean, clean)
    bends = torch.cat([size, size - room], 1)
    kinds = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    bends, order = bends.sort(dim=1, descending=True)
    kinds = kinds.gather(1, order)
    count, total = kinds.cumsum(1), (kinds * bends).cumsum(1)
    within = (total - count * bends <= eps).sum(1, keepdim=True).clamp_min(1) - 1
    shrink = (total.gather(1, within) - eps) / count.gather(1, within).clamp_min(1)
    size = (size - shrink.clamp_min(0)).clamp_min(0).minimum(room)
    moved = (clean + size * delta.sign()).to(images.dtype)
    too_far = (moved.double() - clean).abs() > size
    moved = torch.where(too_far, moved.nextafter(images.flatten(1)), moved)
    return moved.reshape(images.shape)


def _climb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    loss: Loss,
    *,
    eps: float,
    steps: int,
    samples: int,
    odds: bool,
) -> tuple[Found, Tensor]:
    """Run Algorithm 1 of the paper in one ball; return what was found, and the highest point."""
    window = max(int(0.04 * steps), 1)
    x = start
    value, slope, logits = assess(model, x, labels, loss, samples, odds)
    fooled = answer(logits) != labels
    best, best_value, best_slope, fooling = x, value, slope, x
    changes = _changes(best, images)
    length = torch.full_like(changes, eps)
    for step in range(1, steps + 1):
        x = project(x + _sparse_step(slope, changes / SPARSER, length), images, eps)
        value, slope, logits = assess(model, x, labels, loss, samples, odds)
        fools = answer(logits) != labels
        fooled = fooled | fools
        fooling = torch.where(_wide(fools), x, fooling)
        better = value > best_value
        best = torch.where(_wide(better), x, best)
        best_slope = torch.where(_wide(better), slope, best_slope)
        best_value = torch.where(better, value, best_value)
        if step % window == 0:
            before, changes = changes, _changes(best, images)
            sparser = changes < SETTLED * before
            length = (length / SPARSER).clamp_min(SHORTEST * eps)
            length = torch.where(sparser, eps, length)
            x = torch.where(_wide(sparser), best, x)
            slope = torch.where(_wide(sparser), best_slope, slope)
    return Found(torch.where(_wide(fooled), fooling, best), best_value, fooled), best


def _sparse_step(slope: Tensor, width: Tensor, length: Tensor) -> Tensor:
    """Return a step of the given l1 length, equal in the `width` values of steepest slope.

    The number is rounded down, to one at least: rounded up, as the authors do, a step that changes
    two values never comes to change one, and on linear models of 48 values adv-lib's version needs
    up to 1.15 of the least distance.
    """
    size = slope.abs().flatten(1)
    last = (width.long() - 1).clamp_min(0)[:, None]
    least = size.sort(dim=1, descending=True).values.gather(1, last)
    sign = torch.where(size >= least, slope.flatten(1).sign(), 0)
    step = length[:, None] * sign / sign.abs().sum(1, keepdim=True).clamp_min(1)
    return step.reshape(slope.shape)


def _changes(x: Tensor, images: Tensor) -> Tensor:
    """Return how many values of each image changed, float `[B]`."""
    return (x != images).flatten(1).sum(1).to(images)


def _wide(flags: Tensor) -> Tensor:
    """Return flags per image `[B]` in a shape that broadcasts over images."""
    return flags[:, None, None, None]
