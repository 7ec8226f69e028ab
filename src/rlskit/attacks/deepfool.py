"""DeepFool, batched: the images that are not yet fooled step together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import attack_correct, margin

DUAL = {"l2": 2, "linf": 1}
"""Norm of the perturbation -> order of the norm that measures the gradient."""

SHORTEST_STEP = {"l2": 1e-4, "linf": 1e-6}
"""Norm -> length of the least step: shorter ones are lost to rounding beside a boundary."""


def deepfool(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    top_classes: int = 10,
    generator: torch.Generator,  # noqa: ARG001  the method draws nothing
) -> Tensor:
    """Step to the nearest boundary of the linearised model until the label changes.

    Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural
    networks", algorithm 2 (https://arxiv.org/abs/1511.04599). The overshoot is on the total
    perturbation at every step, which is the same as on each step; every step is clipped to [0, 1].

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: The norm that is minimised, `l2` or `linf`.
        steps: Most steps an image may take.
        overshoot: Fraction by which a step goes past the linearised boundary.
        top_classes: Boundaries with the label and the `top_classes - 1` largest other logits of
            the current image are considered; the cost of a step grows with it.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1]; the clean image where it was misclassified already, where the
        gradient vanished, or where no step changed the label.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    return attack_correct(
        model,
        images,
        labels,
        lambda clean, own: _solve(model, clean, own, norm, steps, 1 + overshoot, top_classes),
    )


def _solve(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    norm: str,
    steps: int,
    stride: float,
    top_classes: int,
) -> Tensor:
    result = clean.clone()
    active, x = torch.arange(len(clean), device=clean.device), clean.detach()
    for step in range(steps + 1):
        logits = model(x.requires_grad_())
        fooled = margin(logits, labels) < 0
        if fooled.any():
            result[active[fooled]] = x.detach()[fooled]
            active, labels, x = active[~fooled], labels[~fooled], x.detach()[~fooled]
        if step == steps or not len(x):
            break
        if fooled.any():  # one forward of the rest is cheaper than all backwards of the finished
            logits = model(x.requires_grad_())
        r = _nearest_boundary(logits, x, labels, norm, top_classes)
        moved = r.flatten(1).any(1)  # without a gradient there is nowhere to go: the image failed
        x = (x.detach() + stride * r).clamp_(0, 1)[moved]
        active, labels = active[moved], labels[moved]
    return result


def _nearest_boundary(
    logits: Tensor, x: Tensor, labels: Tensor, norm: str, top_classes: int
) -> Tensor:
    """Return the smallest step to a boundary of the model linearised at `x`; 0 without gradient.

    One backward per class serves the whole batch. On ResNet-20 and a CPU this takes 0.6 of the time
    of `is_grads_batched` (64 images) and 0.4 of that of one backward on a ninefold batch.
    """
    others = logits.detach().scatter(1, labels[:, None], float("-inf"))
    rivals = others.topk(min(top_classes, logits.shape[1]) - 1).indices
    leads = logits.gather(1, labels[:, None]) - logits.gather(1, rivals)
    nearest = leads.new_full((len(x),), float("inf"), dtype=torch.float64)
    length = torch.ones_like(nearest)
    slope = torch.zeros_like(x)
    for k in range(leads.shape[1]):
        last = k == leads.shape[1] - 1
        (grad,) = torch.autograd.grad(leads[:, k].sum(), x, retain_graph=not last)
        # In float64, so that the squares of tiny or huge gradients neither vanish nor overflow.
        size = torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1, dtype=torch.float64)
        distance = leads[:, k].detach().abs() / size
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        length = torch.where(closer, size, length)
        slope = torch.where(closer[:, None, None, None], grad, slope)
    nearest = torch.where(nearest.isfinite(), nearest.clamp_min(SHORTEST_STEP[norm]), 0)
    if norm == "linf":
        return (-nearest[:, None, None, None] * slope.sign()).to(x.dtype)
    return (-(nearest / length)[:, None, None, None] * slope).to(x.dtype)
