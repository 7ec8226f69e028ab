"""EAD: the elastic-net attack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import (
    attack_correct,
    keep_better,
    search_constant,
    shortfall,
    wins,
)
from rlskit.attacks.passes import Passes, Setting


def ead(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    c: float = 0.01,
    beta: float = 0.01,
    kappa: float = 0.1,
    steps: int = 1000,
    lr: float = 0.01,
    search_steps: int = 1,
    decision_rule: str = "en",
    optimizer: str = "adam",
    bounds: tuple[float, float] = (0.0, 1.0),
    targeted: bool = False,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Minimise `c max(shortfall, -kappa) + |x' - x|_2^2 + beta |x' - x|_1` inside the box.

    Chen et al. 2018, "EAD: elastic-net attacks to deep neural networks via adversarial examples"
    (https://arxiv.org/abs/1709.04114). The shortfall is the label's lead over the best other logit,
    or the best other's over the target. Of all iterates where it is at most `-kappa`, the one with
    the smallest distance by the decision rule is returned; the shortfall is that of the returned
    image itself, not of FISTA's extrapolated one.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in `bounds`.
        labels: True classes, or target classes, long `[B]`.
        c: Weight of the shortfall; with more than one search step the first that is tried.
        beta: Weight of l1. With `fista` it is, as in the paper's algorithm 1, the threshold in
            pixel units that every step shrinks by, so l1 weighs `beta / lr` there.
        kappa: Confidence: by how much another logit, or the target's, must lead.
        steps: Steps per constant.
        lr: Length of a step; FISTA's decays with the square root of the steps left.
        search_steps: Number of constants tried per image by binary search; 1 keeps `c`.
        decision_rule: `en` keeps the smallest elastic-net distance, `l1` the smallest l1.
        optimizer: `adam` (section 4.2 of the RLS paper): a proximal step whose threshold is scaled
            as Adam scales the gradient; or `fista` (Chen et al., algorithm 1), at the cost of one
            more forward per step for the images that are nearer than their best.
        bounds: Least and largest pixel value.
        targeted: Whether the labels are the classes to reach.
        generator: Unused.

    Returns:
        Adversarial images in `bounds`; the clean image where it was misclassified, or classified as
        the target, already or where no iterate succeeded.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    descend = {"adam": _adam, "fista": _fista}[optimizer]

    def distance(delta: Tensor) -> Tensor:
        l1 = delta.abs().sum((1, 2, 3))
        return l1 if decision_rule == "l1" else delta.square().sum((1, 2, 3)) + beta * l1

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        def run(constants: Tensor) -> tuple[Tensor, Tensor]:
            best, best_distance = clean, torch.full_like(constants, float("inf"))
            task = _Task(model, clean, own, constants, kappa, targeted)
            for x, missing in descend(task, beta, steps, lr, bounds):
                far = distance(x - clean)
                if missing is None:
                    missing = task.ask(x, far < best_distance)
                best, best_distance = keep_better(best, best_distance, x, far, wins(missing, kappa))
            return best, best_distance

        return search_constant(run, clean, c, search_steps)

    return attack_correct(model, images, labels, solve, targeted)


def ead_passes(
    _: Setting, *, steps: int, search_steps: int, optimizer: str, **__: object
) -> Passes:
    """Count what `ead` asks for where the model is right, and FISTA's points come nearer."""
    gradients = search_steps * steps
    return Passes(1 + gradients * (2 if optimizer == "fista" else 1), gradients)


class _Task(NamedTuple):
    """The smooth part of the objective: `c max(shortfall, -kappa) + |x - clean|_2^2`."""

    model: nn.Module
    clean: Tensor
    labels: Tensor
    constants: Tensor
    kappa: float
    targeted: bool

    @torch.no_grad()
    def ask(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Return the shortfall at the images of `x` that are wanted, inf elsewhere.

        The model is called even for none, so that one that changes with every call changes for an
        image as if it were alone.
        """
        rows = wanted.nonzero().squeeze(1) if wanted.any() else wanted.new_zeros(1).long()
        missing = torch.full_like(self.constants, float("inf"))
        missing[rows] = shortfall(self.model(x[rows]), self.labels[rows], self.targeted)
        return missing

    def differentiate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shortfall at `x` and the gradient of the smooth part there."""
        x = x.detach().requires_grad_()
        missing = shortfall(self.model(x), self.labels, self.targeted)
        (gradient,) = torch.autograd.grad(
            (self.constants * missing.clamp_min(-self.kappa)).sum(), x
        )
        return missing.detach(), gradient.add(x.detach() - self.clean, alpha=2)


_Iterates = Iterator[tuple[Tensor, Tensor | None]]
"""Images inside the box, and the model's shortfall at exactly these, where it is known already."""


def _adam(
    task: _Task, beta: float, steps: int, lr: float, bounds: tuple[float, float]
) -> _Iterates:
    """Yield the iterates of proximal Adam (Kingma & Ba 2015 on the smooth part of the objective).

    The proximal operator of l1 is taken in Adam's own metric, so that the fixed points are those of
    the objective. A plain threshold of `beta` would undo each of Adam's steps, which are at most
    about `lr` long.
    """
    first_decay, second_decay, tiny = 0.9, 0.999, 1e-8
    x, first, second = task.clean, torch.zeros_like(task.clean), torch.zeros_like(task.clean)
    for step in range(1, steps + 1):
        missing, gradient = task.differentiate(x)
        yield x, missing
        first = first.lerp(gradient, 1 - first_decay)
        second = second.lerp(gradient.square(), 1 - second_decay)
        scale = (second / (1 - second_decay**step)).sqrt() + tiny
        moved = (x - task.clean).addcdiv(first, scale, value=-lr / (1 - first_decay**step))
        shrunk = moved.sign() * (moved.abs() - lr * beta / scale).clamp_min(0)
        x = (task.clean + shrunk).clamp(*bounds)


def _fista(
    task: _Task, beta: float, steps: int, lr: float, bounds: tuple[float, float]
) -> _Iterates:
    """Yield the iterates x of algorithm 1 of Chen et al. 2018; the gradient is taken at y."""
    x, y = task.clean, task.clean
    for step in range(steps):
        _, gradient = task.differentiate(y)
        z = y.sub(gradient, alpha=lr * (1 - step / steps) ** 0.5)
        previous, x = x, (task.clean + F.softshrink(z - task.clean, beta)).clamp(*bounds)
        y = x.lerp(previous, -step / (step + 3))
        yield x, None
