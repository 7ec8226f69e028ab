"""Inward: many ascents towards one class each, from points beyond the ball that differ.

Where every ascent of a piecewise linear network has converged, more steps find nothing: which of
many local optima is found is decided by the start, and uniform noise in the ball starts them all
near the clean image. So these starts are spread by what the network makes of them, from farther
off. They are for images in doubt: those that a slightly larger budget breaks at once. On an MNIST
network whose exact robustness is known (docs/audit.md) they find what AutoAttack, random search and
hundreds of plain restarts miss.

Shapes: B images, P images in doubt, S starts, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rlskit.attacks.ball import TINY, direction, inside, noise_inside
from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import margin, scaled
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, rand
from rlskit.seeds import Purpose

TARGETS = 9
"""Classes that may be ascended to, the nearest first, as in AutoAttack."""

IN_DOUBT = 1.1
"""An image is in doubt where one ascent fools the model within so many budgets."""

WIDE = (1.5, 2.0)
"""So many budgets wide, in turns, is the ball that a start is looked for in."""

SPREAD, APPROACH = 3, 6
"""Steps of a start in the wide ball: along a random direction of the logits, then to the target."""

MOMENTUM = 0.75

Objective = Callable[[Tensor], Tensor]
"""Logits `[B, K]` -> what is lowered, `[B]`."""


def inward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 20,
    restarts: int = 300,
    generator: torch.Generator,
) -> Tensor:
    """Ascend towards each class in a slightly larger ball; where that fools, from many starts.

    A start is a random point of a ball 1.5 or 2 budgets wide, moved along a random direction of the
    logits (Tashiro et al. 2020, https://arxiv.org/abs/2003.06878), then towards the target, then
    projected onto the ball. Ascents are signed (or normalised) gradient steps on the target's lead
    over the label, with momentum, whose lengths fall geometrically from the radius to a hundredth.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`, the true classes.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Of each ascent.
        restarts: Starts per image in doubt, which take turns at the classes that are in reach.
        generator: Its seed is that of the starts.

    Returns:
        Where the model errs anyway, the image itself; where fooled, the point of the first start
        that did it; elsewhere the point at which a target came nearest to the label.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    climb = partial(_climb, model, norm=norm, steps=steps)
    with under_attack(model):
        with torch.no_grad():
            logits = model(images)
        rivals = logits.scatter(1, labels[:, None], -math.inf).argsort(dim=1, descending=True)
        rivals = rivals[:, : min(TARGETS, logits.shape[1] - 1)]
        result, least = images.detach().clone(), margin(logits, labels)
        rows = (least >= 0).nonzero().squeeze(1)
        reached = torch.zeros_like(rivals, dtype=torch.bool)
        for rank in range(rivals.shape[1] if len(rows) else 0):
            clean, objective = images[rows], _lead(labels[rows], rivals[rows, rank])
            points, lead = climb(clean, clean, objective, radius=eps * IN_DOUBT)
            reached[rows, rank] = lead < 0
            points = inside(clean, points, norm, eps)
            with torch.no_grad():
                lead = objective(model(points))
            _keep(result, least, rows, points, lead)

        first = 0
        while first < restarts:
            rows = (reached.any(1) & (least >= 0)).nonzero().squeeze(1)
            if not len(rows):
                break
            # As many starts at once as keep to the size of the block.
            turns = range(first, min(first + len(images) // len(rows), restarts))
            again = rows.repeat(len(turns))
            clean = images[again]
            targets = torch.cat([_targets(rivals[rows], reached[rows], turn) for turn in turns])
            objective = _lead(labels[again], targets)
            start = _starts(model, images[rows], objective, turns, norm, eps, generator)
            points, lead = climb(clean, start, objective, radius=eps)
            for turn in zip(points.chunk(len(turns)), lead.chunk(len(turns)), strict=True):
                _keep(result, least, rows, *turn)
            first = turns.stop
    return result


def inward_passes(setting: Setting, *, steps: int, restarts: int, **_: object) -> Passes:
    """Count what `inward` asks for where all images are in doubt and none is fooled."""
    targets = min(TARGETS, setting.classes - 1)
    gradients = targets * (steps + 1) + restarts * (SPREAD + APPROACH + 1 + steps + 1)
    return Passes(gradients + targets + 1, gradients)


def _starts(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    turns: range,
    norm: str,
    eps: float,
    generator: torch.Generator,
) -> Tensor:
    """Return points of the ball from which to ascend, `[S * P, C, H, W]`, of each turn in order."""
    clean = images.repeat(len(turns), 1, 1, 1)
    wide = torch.tensor([eps * WIDE[turn % len(WIDE)] for turn in turns]).to(images)
    radius = wide.repeat_interleave(len(images))[:, None, None, None]
    noise = [noise_inside(images, norm, 1.0, generator, turn) for turn in turns]
    x = inside(clean, clean + radius * torch.cat(noise), norm, radius)
    streams = [
        s for turn in turns for s in image_generators(images, generator, Purpose.INWARD, turn)
    ]
    weights: Tensor | None = None
    for _ in range(SPREAD):
        x = x.detach().requires_grad_()
        logits = model(x)
        if weights is None:
            weights = (2 * rand(logits.shape[1:], streams) - 1).to(logits)
        (slope,) = torch.autograd.grad((weights * logits).sum(), x)
        moved = x.detach() + radius / 2 * direction(slope, norm, steepest=True)
        x = inside(clean, moved, norm, radius)
    x, _ = _climb(model, clean, x, objective, norm=norm, steps=APPROACH, radius=radius, last=0.3)
    return inside(clean, x, norm, eps)


def _climb(
    model: nn.Module,
    clean: Tensor,
    x: Tensor,
    objective: Objective,
    *,
    norm: str,
    steps: int,
    radius: float | Tensor,
    last: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Lower the objective; return the best iterates and its values there, `[B]`.

    The first step is as long as the radius, and the last one `last` times that.
    """
    velocity, best, least = torch.zeros_like(x), x, None
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        value = objective(model(x))
        (slope,) = torch.autograd.grad(value.sum(), x)
        x, value = x.detach(), value.detach()
        better = torch.ones_like(value, dtype=torch.bool) if least is None else value < least
        best = torch.where(better[:, None, None, None], x, best)
        least = value if least is None else torch.minimum(value, least)
        slope = scaled(slope)
        slope = slope / slope.abs().mean((1, 2, 3), keepdim=True).clamp_min(TINY)
        velocity = MOMENTUM * velocity + slope
        length = radius * last ** (step / steps)
        x = inside(clean, x - length * direction(velocity, norm, steepest=True), norm, radius)
    assert least is not None
    return best, least


def _lead(labels: Tensor, targets: Tensor) -> Objective:
    """Return what says by how much the label's logit leads the target's; below 0 it is fooled."""

    def lead(logits: Tensor) -> Tensor:
        of_both = logits.gather(1, torch.stack([labels, targets], 1))
        return of_both[:, 0] - of_both[:, 1]

    return lead


def _targets(rivals: Tensor, reached: Tensor, turn: int) -> Tensor:
    """Return the class of those in reach whose turn it is, `[P]`."""
    in_reach_first = reached.int().argsort(dim=1, descending=True, stable=True)
    place = turn % reached.sum(1, keepdim=True)
    return rivals.gather(1, in_reach_first.gather(1, place)).squeeze(1)


def _keep(result: Tensor, least: Tensor, rows: Tensor, points: Tensor, lead: Tensor) -> None:
    """Put points in the images' place, where a target came nearer; never twice once fooled."""
    better = (least[rows] >= 0) & (lead < least[rows])
    result[rows[better]], least[rows[better]] = points[better], lead[better]
