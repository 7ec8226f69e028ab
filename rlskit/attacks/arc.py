"""ARC: fools as many members of a randomised ensemble as it can, one after the other.

Dbouk & Shanbhag 2022, "Adversarial Vulnerability of Randomized Ensembles"
(https://arxiv.org/abs/2206.06737). Where one draw answers, what counts is how many members err, and
the mean loss may have no slope that tells: two members whose gradients cancel stop PGD, while
either of them could be fooled.

Shapes: M members, B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.passes import Passes, Setting

OVERSHOOT = 0.05
"""How far past a linearised boundary to go, as a fraction of eps; the authors' rho."""

HALVINGS = 16
"""Bisections of the weight between two directions, before the last interval is interpolated."""

TINY = 1e-30
"""Keeps a direction of length 0 from dividing by it."""


def arc(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 20,
    top_classes: int = 4,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Lower the share of members that answer with the label.

    Each step visits the members in turn. One that still answers with the label is linearised at the
    point reached; of all moves of the step's length that cross its nearest boundary, the one is
    tried that gives up least of what earlier members pulled towards, and it is kept unless more
    members are right after it. The members' probabilities are equal.

    As the authors' method except in this: their move adds multiples of the steepest directions,
    with a multiple that suffices but is not the least; here the gradients are added and the least
    multiple is found, so that for two linear members the first step is the best there is, but for
    its overshoot, also in linf. They start at random, try to lead a member that errs back over its
    boundary, and keep one length of steps (eps in linf); here the start is the clean image, such a
    member is left alone, and the length falls evenly from eps.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`. Its `members`, where it has
            some, are what is attacked (see `rlskit.threat.view.DrawsView`); else it is the only
            one.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Number of steps.
        top_classes: Boundaries with the `top_classes - 1` largest other logits are considered.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1], for each image the last point that was kept: no more members
        are right there than on the clean image. The clean image where no member was right.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    members = list(getattr(model, "members", ())) or [model]
    result = images.detach().clone()
    with ExitStack() as watched:
        for member in members:
            watched.enter_context(under_attack(member))
        right = _right(members, result, labels)
        for step in range(steps):
            todo = right.any(0).nonzero().squeeze(1)
            if not len(todo):
                break
            length = eps * (1 - step / steps)
            result[todo], right[:, todo] = _step(
                members, images[todo], result[todo], labels[todo], right[:, todo],
                norm, eps, length, top_classes,
            )  # fmt: skip
    return result


def arc_passes(setting: Setting, *, steps: int, top_classes: int, **_: object) -> Passes:
    """Count what `arc` asks for where no member ever errs: every move is shown to all members."""
    rivals = min(top_classes, setting.classes) - 1
    return Passes(1 + steps * (setting.draws + 1), steps * rivals)


def _step(
    members: Sequence[nn.Module],
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    right: Tensor,
    norm: str,
    eps: float,
    length: float,
    top_classes: int,
) -> tuple[Tensor, Tensor]:
    """Visit every member once.

    Args:
        members: What is attacked.
        images: The clean images, `[B, C, H, W]`.
        start: The points reached so far.
        labels: Long `[B]`.
        right: Which members answer with the label there, bool `[M, B]`.
        norm: `linf` or `l2`.
        eps: Radius of the ball about the images.
        length: Radius of the ball about the start.
        top_classes: As for `arc`.

    Returns:
        The points reached, and which members are right there.
    """
    x, right = start.clone(), right.clone()
    pull = torch.zeros_like(start)  # sum of the directions followed since the start
    for index, member in enumerate(members):
        rows = right[index].nonzero().squeeze(1)
        if not len(rows):
            continue
        origin, own = start[rows], labels[rows]
        distance, ascent = _nearest_boundary(member, x[rows], own, norm, top_classes)
        goal = distance + _dot(ascent, x[rows] - origin) + OVERSHOOT * eps
        move, pulled = _best_move(pull[rows], ascent, goal, length, norm)
        tried = _into_ball(origin + move, images[rows], norm, eps)
        after = _right(members, tried, own)
        kept = after.sum(0) <= right[:, rows].sum(0)
        x[rows[kept]], pull[rows[kept]] = tried[kept], pulled[kept]
        right[:, rows[kept]] = after[:, kept]
    return x, right


def _best_move(
    pull: Tensor, ascent: Tensor, goal: Tensor, length: float, norm: str
) -> tuple[Tensor, Tensor]:
    """Return the move that follows `pull` furthest among those that reach the goal on `ascent`.

    By Lagrange it is the steepest one for a weighted sum of the two, with the least weight on
    `ascent` that reaches the goal. In linf single pixels flip where that weight changes, and a
    point between the two moves is the optimum. A goal beyond the ball is approached together with
    what was pulled towards before.

    Args:
        pull: `[B, C, H, W]`; 0 where there is nothing to give up.
        ascent: Gradients of norm 1, in the norm dual to `norm`.
        goal: How far to go along `ascent`, `[B]`.
        length: Of the move.
        norm: `linf` or `l2`.

    Returns:
        The moves, and the weighted sums that they are the steepest for.
    """

    def mixed(weight: Tensor) -> Tensor:
        share = weight[:, None, None, None]
        return (1 - share) * pull + share * ascent

    low, high = torch.zeros_like(goal), torch.ones_like(goal)
    for _ in range(HALVINGS):
        weight = (low + high) / 2
        enough = _dot(ascent, length * _steepest(mixed(weight), norm)) >= goal
        low, high = torch.where(enough, low, weight), torch.where(enough, weight, high)
    short, far = (length * _steepest(mixed(weight), norm) for weight in (low, high))
    reached = _dot(ascent, short)
    share = ((goal - reached) / (_dot(ascent, far) - reached).clamp_min(TINY)).clamp(0, 1)
    move = short + share[:, None, None, None] * (far - short)
    together = (goal >= length) | ~pull.flatten(1).any(1)
    pulled = torch.where(together[:, None, None, None], pull + ascent, mixed(high))
    move = torch.where(together[:, None, None, None], length * _steepest(pulled, norm), move)
    return move, pulled


def _nearest_boundary(
    member: nn.Module, images: Tensor, labels: Tensor, norm: str, top_classes: int
) -> tuple[Tensor, Tensor]:
    """Find the nearest boundary of a member linearised at images that it gets right.

    Returns:
        Its distance in `norm`, `[B]`, inf where no gradient leads to one; the gradient that leads
        there, of length 1 in the dual norm, or 0.
    """
    x = images.detach().requires_grad_()
    logits = member(x)
    others = logits.detach().scatter(1, labels[:, None], float("-inf"))
    rivals = others.topk(min(top_classes, logits.shape[1]) - 1).indices
    leads = logits.gather(1, labels[:, None]) - logits.gather(1, rivals)
    nearest = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    ascent = torch.zeros_like(images)
    for lead in leads.unbind(1):
        (gradient,) = torch.autograd.grad(lead.sum(), x, retain_graph=True)
        # In float64, so that the squares of tiny or huge gradients neither vanish nor overflow.
        order = 1 if norm == "linf" else 2
        size = torch.linalg.vector_norm(gradient.flatten(1), order, 1, dtype=torch.float64)
        distance = lead.detach() / size
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        ascent[closer] = (-gradient[closer] / size[closer, None, None, None]).to(ascent.dtype)
    return nearest.to(images.dtype), ascent


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """Return the move of length 1 that rises most along `gradient`."""
    if norm == "linf":
        return gradient.sign()
    size: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(TINY)
    return gradient / size[:, None, None, None]


def _into_ball(x: Tensor, images: Tensor, norm: str, eps: float) -> Tensor:
    """Return the nearest points of the ball about the images, clipped to [0, 1]."""
    delta = x - images
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        size = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(TINY)
        delta = delta * (eps / size).clamp_max(1)[:, None, None, None]
    return (images + delta).clamp(0, 1)


@torch.no_grad()
def _right(members: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Say which members answer with the label, bool `[M, B]`."""
    return torch.stack([member(images).argmax(1) == labels for member in members])


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Return each image's inner product, `[B]`."""
    return (first * second).flatten(1).sum(1)
