"""APGD: gradient ascent with momentum that chooses its own step size; AutoAttack's white-box part.

Croce & Hein 2020 (https://arxiv.org/abs/2003.01690). A run takes the steps of torchattacks 3.5.1,
rounding included (its cross-entropy is `ce-saturating` here), where the model is deterministic.
What differs: every image has its own start and step size (torchattacks' targeted l2 gives all
images the first one's step size); with several EOT samples the loss and the answer are means over
them, not those of the last; and an image that was not fooled comes back as the point of highest
loss, not as it was.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.attacks.attempts import Attempt, Found, answer, best_of, surely_fooled
from rlskit.attacks.losses import LOSSES, Loss, mean_over_calls, scaled
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, normal, uniform
from rlskit.errors import RequestError
from rlskit.seeds import Purpose

TINY = 1e-12
"""Added to what is divided by, as torchattacks does."""


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 100,
    loss: str = "ce",
    restarts: int = 1,
    rho: float = 0.75,
    eot_samples: int = 1,
    rest: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Ascend the loss of the true label with APGD (Algorithm 1 of the paper).

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Number of steps of a run.
        loss: A key of `rlskit.attacks.losses.LOSSES`; the paper's are `ce` and `dlr`.
        restarts: Runs per image, from other starts; an image that was fooled rests.
        rho: Share of steps that must raise the loss, or else the step size is halved.
        eot_samples: Calls of the model that loss, gradient and answer are the mean of.
        rest: Whether an image that is surely fooled leaves the run, with the iterate that did it.
            Not where others than `model` judge: the last iterate fools more of them.
        generator: Its seed is that of the random starts.

    Returns:
        Where fooled, the last iterate that did it; elsewhere the iterate of highest loss; where the
        model errs on the image itself, that image.

    Raises:
        RequestError: `dlr` with fewer than three classes.
        UntrustedError: Non-finite logits or gradients.
    """
    runs = ascents(
        model, loss=loss, restarts=restarts, norm=norm, eps=eps, steps=steps, rho=rho,
        eot_samples=eot_samples, rest=rest, generator=generator,
    )  # fmt: skip
    return best_of(model, images, labels, lambda classes: runs, eot_samples)  # noqa: ARG005


def apgd_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    eot_samples: int = 1,
    target_classes: int = 9,
    rest: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Ascend the targeted difference of logits ratio, one run per target class, with APGD.

    The targets are the classes that follow the label on the clean image, the highest first.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`, the true classes.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Number of steps of a run.
        restarts: Runs per target.
        rho: As for `apgd`.
        eot_samples: As for `apgd`.
        target_classes: Number of targets, at most K - 1.
        rest: As for `apgd`.
        generator: Its seed is that of the random starts.

    Returns:
        As `apgd`.

    Raises:
        RequestError: Fewer than four classes, or no target.
        UntrustedError: Non-finite logits or gradients.
    """
    if target_classes < 1:
        raise RequestError(f"`target_classes` must be at least 1 here, not {target_classes}")

    def runs(classes: int) -> list[Attempt]:
        return targeted_ascents(
            model, targets=min(target_classes, classes - 1), restarts=restarts, norm=norm, eps=eps,
            steps=steps, rho=rho, eot_samples=eot_samples, rest=rest, generator=generator,
        )  # fmt: skip

    return best_of(model, images, labels, runs, eot_samples)


def apgd_passes(_: Setting, *, steps: int, restarts: int, eot_samples: int, **__: object) -> Passes:
    """Count what `apgd` asks for where it never fools the model."""
    gradients = restarts * (steps + 1) * eot_samples
    return Passes(gradients + eot_samples, gradients)


def apgd_t_passes(
    setting: Setting,
    *,
    steps: int,
    restarts: int,
    eot_samples: int,
    target_classes: int,
    **_: object,
) -> Passes:
    """Count what `apgd_t` asks for where it never fools the model; every run looks for its target.

    See `apgd_passes` for the rest.
    """
    runs = restarts * min(target_classes, setting.classes - 1)
    found = apgd_passes(setting, steps=steps, restarts=runs, eot_samples=eot_samples)
    return found.and_then(Passes(runs * eot_samples, 0))


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return how far the target's logit leads the label's, `[B]`, in a scale of the logits' own.

    The scale is the highest logit less the mean of the third and fourth (equation 7 of the paper).

    Raises:
        RequestError: Fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise RequestError(
            "the targeted DLR loss of APGD-T needs at least 4 classes, and the model has "
            f"{logits.shape[1]}; use `method='apgd-ce'`"
        )
    highest = logits.topk(4, dim=1).values
    scale = highest[:, 0] - 0.5 * highest[:, 2] - 0.5 * highest[:, 3] + TINY
    lead = logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])
    return -lead.squeeze(1) / scale


def _from_label_to_target(logits: Tensor, pairs: Tensor) -> Tensor:
    return targeted_dlr(logits, *pairs.unbind(1))


def ascents(
    model: nn.Module,
    *,
    loss: str,
    restarts: int,
    norm: str,
    eps: float,
    steps: int,
    rho: float,
    eot_samples: int,
    rest: bool,
    generator: torch.Generator,
) -> list[Attempt]:
    """Return the runs of `apgd`, for `attempts.best_of`."""

    def run(restart: int, images: Tensor, labels: Tensor) -> Found:
        streams = image_generators(images, generator, Purpose(f"apgd {loss}"), restart)
        start = _start(images, streams, norm, eps)
        return _climb(
            model, images, labels, start, LOSSES[loss], labels, norm=norm, eps=eps, steps=steps,
            rho=rho, samples=eot_samples, rest=rest, odds=loss == "ce",
        )  # fmt: skip

    return [partial(run, restart) for restart in range(restarts)]


def targeted_ascents(
    model: nn.Module,
    *,
    targets: int,
    restarts: int,
    norm: str,
    eps: float,
    steps: int,
    rho: float,
    eot_samples: int,
    rest: bool,
    generator: torch.Generator,
) -> list[Attempt]:
    """Return the runs of `apgd_t`, for `attempts.best_of`."""

    def run(rank: int, restart: int, images: Tensor, labels: Tensor) -> Found:
        streams = image_generators(images, generator, Purpose.APGD_T, rank, restart)
        start = _start(images, streams, norm, eps)
        targets = _class_of_rank(model, images, labels, rank, eot_samples)
        return _climb(
            model, images, labels, start, _from_label_to_target, torch.stack([labels, targets], 1),
            norm=norm, eps=eps, steps=steps, rho=rho, samples=eot_samples, rest=rest,
        )  # fmt: skip

    return [partial(run, rank, restart) for rank in range(targets) for restart in range(restarts)]


@torch.no_grad()
def _class_of_rank(
    model: nn.Module, images: Tensor, labels: Tensor, rank: int, samples: int
) -> Tensor:
    """Return the class that is `rank`-th (from 0) of those that are not the label, `[B]`."""
    logits = torch.stack([model(images) for _ in range(samples)])
    mean = logits[0] if samples == 1 else logits.softmax(2).mean(0)
    others = mean.scatter(1, labels[:, None], float("-inf"))
    return others.argsort(dim=1, descending=True, stable=True)[:, rank]


def _climb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    loss: Loss,
    aims: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    rho: float,
    samples: int,
    rest: bool,
    odds: bool = False,
) -> Found:
    """Run Algorithm 1 of the paper once, on all images side by side.

    `aims` is what the loss takes beside the logits. `odds` says that it is the log odds, which
    stand for the cross-entropy.
    """
    # Section 3.1: checkpoints come closer and closer, in hundredths of the steps 22, 6 and 3.
    window, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    length = torch.full_like(images[:, :1, :1, :1], 2 * eps)

    x = previous = start
    value, slope, logits = assess(model, x, aims, loss, samples, odds)
    fooled = answer(logits) != labels
    best, best_value, best_slope, fooling = x, value, slope, x

    # What is known about each image since the last checkpoint. torchattacks compares the first
    # iterate with a loss of 0, not with that of the start; and it never halves for lack of progress
    # twice in a row, the first checkpoint counting as such a second time.
    last, rises = torch.full_like(value, -math.inf if odds else 0), torch.zeros_like(labels)
    at_checkpoint = best_value
    halved = torch.ones_like(fooled)
    since = 0

    # Images that rest keep what was found here; `at` are the places of those that go on.
    found, at = Found(x.clone(), value.clone(), fooled.clone()), torch.arange(len(x)).to(labels)

    for step in range(steps):
        if rest and (sure := surely_fooled(logits, labels)).any():
            found.images[at[sure]], found.fooled[at[sure]] = fooling[sure], True
            if sure.all():
                return found
            on = partial(_those, ~sure)
            at, images, labels, aims, x, previous = on(at, images, labels, aims, x, previous)
            slope, length, fooled, fooling, halved = on(slope, length, fooled, fooling, halved)
            best, best_value, best_slope = on(best, best_value, best_slope)
            last, rises, at_checkpoint = on(last, rises, at_checkpoint)
        aim = _project(x + _move(slope, length, norm), images, norm, eps)
        fresh = 0.75 if step else 1.0
        moved = x + (aim - x) * fresh + (x - previous) * (1 - fresh)
        x, previous = _project(moved, images, norm, eps), x

        value, slope, logits = assess(model, x, aims, loss, samples, odds)
        fools = answer(logits) != labels
        fooled = fooled | fools
        fooling = torch.where(_wide(fools), x, fooling)

        better = value > best_value
        best = torch.where(_wide(better), x, best)
        best_slope = torch.where(_wide(better), slope, best_slope)
        best_value = torch.where(better, value, best_value)

        rises = rises + (value > last)
        last, since = value, since + 1
        if since == window:
            halved = (rises <= math.floor(rho * window)) | (~halved & (at_checkpoint >= best_value))
            length = torch.where(_wide(halved), length / 2, length)
            x = torch.where(_wide(halved), best, x)
            slope = torch.where(_wide(halved), best_slope, slope)
            rises, at_checkpoint = torch.zeros_like(rises), best_value
            since, window = 0, max(window - shrink, shortest)

    found.images[at], found.fooled[at] = torch.where(_wide(fooled), fooling, best), fooled
    found.loss[at] = best_value
    return found


def _those(flags: Tensor, *each: Tensor) -> list[Tensor]:
    return [one[flags] for one in each]


def assess(
    model: nn.Module, x: Tensor, aims: Tensor, loss: Loss, samples: int, odds: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return loss and its gradient's direction over calls of the model, and the logits of each."""
    x = x.detach().requires_grad_()
    slope, heaviest = torch.zeros_like(x), torch.full_like(x[:, 0, 0, 0], -math.inf)
    values, logits = [], []
    for _ in range(samples):  # one backward each, so that memory does not grow with the samples
        output = model(x)
        losses = loss(output, aims)
        (own,) = torch.autograd.grad(losses.sum(), x)
        values.append(losses.detach())
        logits.append(output.detach())
        # A call's share in the gradient of the mean cross-entropy is 1 - p; the largest becomes 1.
        weight = F.logsigmoid(values[-1]).to(x) if odds else torch.zeros_like(heaviest)
        top = torch.maximum(weight, heaviest)
        slope = slope * _wide((heaviest - top).exp()) + own * _wide((weight - top).exp())
        heaviest = top
    return mean_over_calls(torch.stack(values), odds=odds), slope, logits


def _start(images: Tensor, streams: list[torch.Generator], norm: str, eps: float) -> Tensor:
    """Return a random point of the ball's surface, clipped to the box."""
    if norm == "linf":
        delta = uniform(images, streams)
        size = delta.abs().amax((1, 2, 3), keepdim=True)
    else:
        delta = normal(images, streams)
        size = _l2(delta) + TINY
    return (images + eps * delta / size).clamp(0, 1)


def _move(slope: Tensor, length: Tensor, norm: str) -> Tensor:
    """Return the step of the given length that raises the loss most."""
    if norm == "linf":
        return length * slope.sign()
    slope = scaled(slope)
    return length * slope / (_l2(slope) + TINY)


def _project(x: Tensor, images: Tensor, norm: str, eps: float) -> Tensor:
    """Return `x` projected onto the ball around the images, then onto the box."""
    if norm == "linf":
        return x.clamp(images - eps, images + eps).clamp(0, 1)
    delta = x - images
    size = _l2(delta)
    return (images + delta / (size + TINY) * size.clamp_max(eps)).clamp(0, 1)


def _l2(delta: Tensor) -> Tensor:
    return delta.square().sum((1, 2, 3), keepdim=True).sqrt()


def _wide(flags: Tensor) -> Tensor:
    """Return flags per image `[B]` in a shape that broadcasts over images."""
    return flags[:, None, None, None]
