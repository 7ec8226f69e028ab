"""FAB: Fast Adaptive Boundary, the minimum-norm attack of AutoAttack.

torchattacks' version crashes for l1, keeps the first success of several restarts or targets
instead of the nearest, and ignores gradients below 1e-8, so this one is written from the paper.

Shapes: B images, K classes, D = C·H·W pixel values, R rival classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlskit.attacks.losses import margin
from rlskit.attacks.minimum_norm import attack_correct, keep_better
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, normal, uniform
from rlskit.seeds import Purpose

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
"""Norm of the perturbation -> its order."""

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
"""Norm of the perturbation -> order of the norm that measures the gradient."""

START_RADIUS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""Norm -> widest random start of a restart, twice as far as it may lie: those of the authors."""

SHORTEST = 1e-8
"""A shorter step counts as this long where two steps are weighed by their lengths."""

TINY = torch.finfo(torch.float64).tiny
"""What takes the place of 0 in a denominator whose numerator is then 0 or irrelevant."""


def fab(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    keep: float = 0.9,
    target_classes: int = 0,
    enough: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Walk along the decision boundary towards the clean image.

    Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
    attack", algorithm 1 (https://arxiv.org/abs/1907.02044), without its final search, as in
    AutoAttack. Every step projects the iterate and the clean image onto the linearised nearest
    boundary within [0, 1], and moves to a mean of the two; a fooling iterate is drawn back.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: The norm that is minimised, `linf`, `l2` or `l1`.
        steps: Steps of each run.
        restarts: Runs per target; those after the first start at random points.
        alpha_max: Greatest weight of the clean image's projection in a step.
        eta: Overshoot: how far past the boundary a projection goes, 1 is onto it.
        keep: Fraction of its perturbation that a fooling iterate keeps; the paper's beta.
        target_classes: 0 considers the boundaries with all classes at every step, which takes
            K - 1 backward passes; k > 0 makes a run towards each of the clean image's k largest
            other logits, with one backward pass a step (section 3.3 of AutoAttack's paper,
            https://arxiv.org/abs/2003.01690).
        enough: Do no further run for an image once it was fooled within this distance; None for the
            nearest point of all runs. It limits nothing: a result may lie further off.
        generator: Its seed is that of the random starts.

    Returns:
        The nearest fooling images found, in [0, 1]; the clean image where it was misclassified
        already or where no iterate fooled the model.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        best, distance = clean, clean.new_full((len(clean),), math.inf, dtype=torch.float64)
        for target, rivals in enumerate(_rivals(model, clean, own, target_classes)):
            for restart in range(restarts):
                todo = (distance > (enough or 0)).nonzero().squeeze(1)
                if not len(todo):
                    return best
                x = clean[todo]
                if restart:
                    widest = START_RADIUS[norm] if enough is None else enough
                    streams = image_generators(x, generator, Purpose.FAB, target, restart)
                    x = _start(x, streams, norm, distance[todo].clamp_max(widest) / 2)
                found = _walk(
                    model, clean[todo], own[todo], rivals[todo], x,
                    norm=norm, steps=steps, alpha_max=alpha_max, eta=eta, keep=keep,
                )  # fmt: skip
                best, distance = _keep_nearer(best, distance, todo, *found)
        return best

    return attack_correct(model, images, labels, solve)


def fab_passes(
    setting: Setting, *, steps: int, restarts: int, target_classes: int, **_: object
) -> Passes:
    """Count what `fab` asks for where it knows of nothing that is near enough."""
    rivals = setting.classes - 1
    runs, planes = (min(target_classes, rivals), 1) if target_classes else (1, rivals)
    walked = runs * restarts * steps
    return Passes(2 + 2 * walked, planes * walked)


def _rivals(
    model: nn.Module, clean: Tensor, labels: Tensor, target_classes: int
) -> tuple[Tensor, ...]:
    """Return the classes `[B, R]` that each run considers, largest clean logits first."""
    with torch.no_grad():
        others = model(clean).scatter(1, labels[:, None], -math.inf)
    rivals = others.topk(others.shape[1] - 1).indices
    return rivals.split(1, dim=1)[:target_classes] if target_classes else (rivals,)


def _walk(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    rivals: Tensor,
    x: Tensor,
    *,
    norm: str,
    steps: int,
    alpha_max: float,
    eta: float,
    keep: float,
) -> tuple[Tensor, Tensor]:
    """Return each image's nearest fooling iterate and its distance (the clean one and inf)."""
    best, best_distance = clean, clean.new_full((len(clean),), math.inf, dtype=torch.float64)
    for _ in range(steps):
        lead, slope = _nearest_plane(model, x, labels, rivals, norm)
        lead_at_clean = lead + (slope * (clean - x)).flatten(1).sum(1)
        from_x = _onto_plane(x, lead, slope, norm)
        from_clean = _onto_plane(clean, lead_at_clean, slope, norm)
        near = _length(from_x, norm).clamp_min(SHORTEST)
        far = _length(from_clean, norm).clamp_min(SHORTEST)
        alpha = _per_image((near / (near + far)).clamp_max(alpha_max))
        moved = (1 - alpha) * (x + eta * from_x) + alpha * (clean + eta * from_clean)
        x = moved.clamp(0, 1).to(clean.dtype)
        with torch.no_grad():
            fooled = margin(model(x), labels) < 0
        distance = _length(x - clean, norm)
        best, best_distance = keep_better(best, best_distance, x, distance, fooled)
        x = torch.where(_per_image(fooled), clean + keep * (x - clean), x)
    return best, best_distance


def _nearest_plane(
    model: nn.Module, x: Tensor, labels: Tensor, rivals: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """Return the lead over the rival whose linearised boundary is nearest, and its slope.

    Both in float64, so that squares of tiny gradients do not vanish; 0 where all gradients are 0.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    leads = logits.gather(1, labels[:, None]) - logits.gather(1, rivals)
    nearest = leads.new_full((len(x),), math.inf, dtype=torch.float64)
    lead, slope = torch.zeros_like(nearest), torch.zeros_like(x, dtype=torch.float64)
    for k in range(leads.shape[1]):
        last = k == leads.shape[1] - 1
        (grad,) = torch.autograd.grad(leads[:, k].sum(), x, retain_graph=not last)
        grad, value = grad.double(), leads[:, k].detach().double()
        distance = value.abs() / torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        lead = torch.where(closer, value, lead)
        slope = torch.where(_per_image(closer), grad, slope)
    return lead, slope


def _onto_plane(points: Tensor, lead: Tensor, slope: Tensor, norm: str) -> Tensor:
    """Return the shortest step onto {lead + <slope, step> = 0} that stays in [0, 1].

    Where the plane misses the box, the step to the box's corner that is nearest to the plane.
    Every value moves against its slope, until it meets its end of the range: in linf all by one
    length, in l2 in proportion to the slope, in l1 one after the other, steepest first. So what
    must be lost of the lead fixes the step after one sort (section 3.1 of the paper).
    """
    slope = slope.flatten(1)
    scale = slope.abs().amax(1, keepdim=True).clamp_min(TINY)
    direction = -lead.sign()[:, None] * slope / scale
    need, size = lead.abs()[:, None] / scale, direction.abs()
    start = points.flatten(1).double()
    room = torch.where(direction > 0, 1 - start, start)
    room = torch.where(size > 0, room, 0)
    if norm == "l1":
        steepest = size.argsort(dim=1, descending=True, stable=True)
        gains = (size * room).gather(1, steepest)
        lost = (need - (gains.cumsum(1) - gains)).clamp_min(0).minimum(gains)
        moved = torch.zeros_like(size).scatter(1, steepest, lost) / size.clamp_min(TINY)
    else:
        speed = torch.ones_like(size) if norm == "linf" else size
        ends, order = (room / speed).nan_to_num(0, 0, 0).sort(dim=1)
        gains = (size * room).gather(1, order)
        met = gains.cumsum(1) - gains
        rate = (size * speed).gather(1, order).flip(1).cumsum(1).flip(1)
        first = (met + rate * ends < need).sum(1, keepdim=True).clamp_max(ends.shape[1] - 1)
        time = (need - met.gather(1, first)) / rate.gather(1, first).clamp_min(TINY)
        moved = (time.minimum(ends[:, -1:]) * speed).minimum(room)
    return (direction.sign() * moved).reshape(points.shape)


def _start(x: Tensor, streams: list[torch.Generator], norm: str, radius: Tensor) -> Tensor:
    """Return a random point at the given distance, or nearer where the box cuts it off."""
    delta = uniform(x, streams) if norm == "linf" else normal(x, streams)
    delta = delta * _per_image(radius / _length(delta, norm)).to(x.dtype)
    return (x + delta).clamp(0, 1)


def _keep_nearer(
    best: Tensor, distance: Tensor, rows: Tensor, found: Tensor, found_distance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best images and distances after a run of some of the rows."""
    nearer = found_distance < distance[rows]
    chosen = rows[nearer]
    best, distance = best.clone(), distance.clone()
    best[chosen], distance[chosen] = found[nearer], found_distance[nearer]
    return best, distance


def _length(delta: Tensor, norm: str) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), ORDER[norm], 1, dtype=torch.float64)
    return norms


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
