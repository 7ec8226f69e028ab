"""EAD: the elastic-net attack."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import attack_correct, keep_better, margin, search_constant, wins


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
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Minimise `c max(margin, -kappa) + |x' - x|_2^2 + beta |x' - x|_1` inside the box.

    Chen et al. 2018, "EAD: elastic-net attacks to deep neural networks via adversarial examples"
    (https://arxiv.org/abs/1709.04114). Of all iterates whose margin is at most `-kappa`, the one
    with the smallest distance by the decision rule is returned; the margin is that of the returned
    image itself, not of FISTA's extrapolated one.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in `bounds`.
        labels: Long `[B]`.
        c: Weight of the margin; with more than one search step the first that is tried.
        beta: Weight of l1. With `fista` it is, as in the paper's algorithm 1, the threshold in
            pixel units that every step shrinks by, so l1 weighs `beta / lr` there.
        kappa: Confidence: by how much another logit must lead.
        steps: Steps per constant.
        lr: Length of a step; FISTA's decays with the square root of the steps left.
        search_steps: Number of constants tried per image by binary search; 1 keeps `c`.
        decision_rule: `en` keeps the smallest elastic-net distance, `l1` the smallest l1.
        optimizer: `adam` (section 4.2 of the RLS paper): a proximal step whose threshold is scaled
            as Adam scales the gradient; or `fista` (Chen et al., algorithm 1), at the cost of one
            more forward per step.
        bounds: Least and largest pixel value.
        generator: Unused.

    Returns:
        Adversarial images in `bounds`; the clean image where it was misclassified already or where
        no iterate succeeded.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    descend = {"adam": _adam, "fista": _fista}[optimizer]

    def distance(delta: Tensor) -> Tensor:
        l1 = delta.flatten(1).abs().sum(1)
        return l1 if decision_rule == "l1" else delta.flatten(1).square().sum(1) + beta * l1

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        def run(constants: Tensor) -> tuple[Tensor, Tensor]:
            best, best_distance = clean, torch.full_like(constants, float("inf"))
            for x, lead in descend(model, clean, own, constants, beta, kappa, steps, lr, bounds):
                best, best_distance = keep_better(
                    best, best_distance, x, distance(x - clean), wins(lead, kappa)
                )
            return best, best_distance

        return search_constant(run, clean, c, search_steps)

    return attack_correct(model, images, labels, solve)


_Iterates = Iterator[tuple[Tensor, Tensor]]
"""Images inside the box, and the margin of the model at exactly these images."""


def _adam(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    constants: Tensor,
    beta: float,
    kappa: float,
    steps: int,
    lr: float,
    bounds: tuple[float, float],
) -> _Iterates:
    """Yield the iterates of proximal Adam (Kingma & Ba 2015 on the smooth part of the objective).

    The proximal operator of l1 is taken in Adam's own metric, so that the fixed points are those of
    the objective. A plain threshold of `beta` would undo each of Adam's steps, which are at most
    about `lr` long.
    """
    first_decay, second_decay, tiny = 0.9, 0.999, 1e-8
    x, first, second = clean, torch.zeros_like(clean), torch.zeros_like(clean)
    for step in range(1, steps + 1):
        lead, gradient = _margin_and_gradient(model, x, labels, constants, kappa)
        yield x, lead
        gradient = gradient + 2 * (x - clean)
        first = first.lerp(gradient, 1 - first_decay)
        second = second.lerp(gradient.square(), 1 - second_decay)
        scale = (second / (1 - second_decay**step)).sqrt() + tiny
        moved = x - clean - lr / (1 - first_decay**step) * first / scale
        shrunk = moved.sign() * (moved.abs() - lr * beta / scale).clamp_min(0)
        x = (clean + shrunk).clamp(*bounds)


def _fista(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    constants: Tensor,
    beta: float,
    kappa: float,
    steps: int,
    lr: float,
    bounds: tuple[float, float],
) -> _Iterates:
    """Yield the iterates x of algorithm 1 of Chen et al. 2018; the gradient is taken at y."""
    x, y = clean, clean
    for step in range(steps):
        _, gradient = _margin_and_gradient(model, y, labels, constants, kappa)
        gradient = gradient + 2 * (y - clean)
        z = y - lr * (1 - step / steps) ** 0.5 * gradient
        previous, x = x, (clean + F.softshrink(z - clean, beta)).clamp(*bounds)
        y = x + step / (step + 3) * (x - previous)
        with torch.no_grad():
            lead = margin(model(x), labels)
        yield x, lead


def _margin_and_gradient(
    model: nn.Module, x: Tensor, labels: Tensor, constants: Tensor, kappa: float
) -> tuple[Tensor, Tensor]:
    """Return the margin at `x`, `[B]`, and the gradient of `c max(margin, -kappa)` there."""
    x = x.detach().requires_grad_()
    lead = margin(model(x), labels)
    (gradient,) = torch.autograd.grad((constants * lead.clamp_min(-kappa)).sum(), x)
    return lead.detach(), gradient
