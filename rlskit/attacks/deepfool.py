"""DeepFool, batched, with no more backward passes than tell which boundary is the nearest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import attack_correct
from rlskit.attacks.passes import Passes, Setting

DUAL = {"l2": 2, "linf": 1}
"""Norm of the perturbation -> order of the norm that measures the gradient."""

LEAST_MOVE = 4e-7
"""By how much a step moves the pixels at least, in the mean: less is lost to their rounding.

It doubles with every step, `DOUBLINGS` times at most, as a network in half precision rounds away
more: in bfloat16 66 % of digits stayed on the boundary otherwise, and counted as robust.
"""

DOUBLINGS = 14

GROWTH = 2.0
"""How much longer than when it was last measured a gradient may have become.

A boundary that even so lies farther than the nearest one is not measured again. On CIFAR-10 and a
ResNet-20 the largest growth was 1.6 in a second step and 1.2 in later ones, and 12 backward passes
per image do what 29 do.
"""

BEYOND = 1.0005
"""Length of the perturbation that is returned, as a multiple of the one that was found."""

ON_CPU = 32
"""Images that step together on a CPU; the activations of more are slower to reach."""


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
            the current image are considered; the cost of the first step grows with it.
        generator: Unused.

    Returns:
        Adversarial images in [0, 1]; the clean image where it was misclassified already, where the
        gradient vanished, or where no step changed the label.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        found = _solve(model, clean, own, norm, steps, 1 + overshoot, top_classes)
        return _beyond_rounding(model, clean, found, own)

    return attack_correct(model, images, labels, solve)


def deepfool_passes(setting: Setting, *, steps: int, top_classes: int, **_: object) -> Passes:
    """Count what `deepfool` asks for where it fools the model late, and measures every boundary.

    Two forward passes a step, as images that measure on without the others halve each time.
    """
    rivals = min(top_classes, setting.classes) - 1
    return Passes(2 * steps + 3, steps * rivals)


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
    together = len(clean) if clean.is_cuda else ON_CPU
    active, x = torch.arange(len(clean), device=clean.device), clean
    lengths = x.new_full((len(x), 1), float("inf"), dtype=torch.float64)  # none measured yet
    for step in range(steps + 1):
        most = top_classes if step < steps else 1  # at the end only who is fooled is asked
        least = LEAST_MOVE * 2 ** min(step, DOUBLINGS)
        found = [
            _nearest_boundary(model, x[some], labels[some], lengths[some], norm, most, least)
            for some in torch.split(torch.arange(len(x), device=x.device), together)
        ]
        fooled, r, lengths = (torch.cat(parts) for parts in zip(*found, strict=True))
        result[active[fooled]] = x[fooled]
        moved = ~fooled & r.flatten(1).any(1)  # without a gradient there is nowhere to go
        if not moved.any():
            break
        x = (x + stride * r).clamp_(0, 1)[moved]
        active, labels, lengths = active[moved], labels[moved], lengths[moved]
    return result


@torch.no_grad()
def _beyond_rounding(model: nn.Module, clean: Tensor, found: Tensor, labels: Tensor) -> Tensor:
    """Return the images a little farther out, where that fools the model, too.

    The last step may end so near the boundary that the same network in other batches, or not
    folded, is not fooled: that is how 1 to 3 % of the images came to count as robust.
    """
    farther = (clean + BEYOND * (found - clean)).clamp(0, 1)
    fooled = model(farther).argmax(1) != labels
    return torch.where(fooled[:, None, None, None], farther, found)


def _nearest_boundary(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    lengths: Tensor,
    norm: str,
    top_classes: int,
    least_move: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest boundary of the model linearised at the images; B images, K classes.

    One backward pass measures one boundary of every image, the one that may be nearest. When most
    images know theirs, the others go on without them: a forward pass is cheaper than many
    backward passes of the finished.

    Args:
        model: Maps images to logits.
        images: `[B, C, H, W]`.
        labels: Long `[B]`.
        lengths: Of the gradient of the label's lead over each class, as last measured, float64
            `[B, K]` or `[B, 1]`; inf where it never was.
        norm: A key of `DUAL`.
        top_classes: One more than the number of boundaries to consider.
        least_move: By how much a step moves the pixels at least, in the mean.

    Returns:
        Who is fooled, bool `[B]`; the smallest step to a boundary, 0 without gradient; `lengths`
        brought up to date.
    """
    x = images.detach().requires_grad_()
    logits = model(x)
    others = logits.detach().scatter(1, labels[:, None], float("-inf"))
    fooled = others.amax(1) > logits.detach().gather(1, labels[:, None]).squeeze(1)
    rivals = others.topk(min(top_classes, logits.shape[1]) - 1).indices
    leads = _leads(logits, labels, rivals)
    lengths = lengths.expand_as(logits).clone()
    least = leads.detach() / (GROWTH * lengths.gather(1, rivals))  # distance that it has at least
    nearest = lengths.new_full((len(x),), float("inf"))
    step = torch.zeros_like(images)
    rows = torch.arange(len(x), device=x.device)
    while rivals.shape[1]:
        bound, k = least.min(1)
        doubt = (bound < nearest[rows]) & ~fooled[rows]
        if not doubt.any():
            break
        if doubt.sum() < len(rows) / 2:
            rows, rivals, least, k = rows[doubt], rivals[doubt], least[doubt], k[doubt]
            x = images[rows].detach().requires_grad_()
            leads = _leads(model(x), labels[rows], rivals)
            doubt = torch.ones_like(rows, dtype=torch.bool)
        lead = leads.gather(1, k[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(lead.sum(), x, retain_graph=True)
        # In float64, so that the squares of tiny or huge gradients neither vanish nor overflow.
        length = torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm], 1, dtype=torch.float64)
        distance = lead.detach() / length
        closer = doubt & (distance < nearest[rows])
        nearest[rows[closer]] = distance[closer]
        step[rows[closer]] = _to_plane(
            gradient[closer], distance[closer], length[closer], norm, least_move
        )
        known = doubt & (length > 0)
        lengths[rows[known], rivals.gather(1, k[:, None]).squeeze(1)[known]] = length[known]
        least.scatter_(1, k[:, None], float("inf"))
    return fooled, step, lengths


def _leads(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Return by how much the label's logit leads each rival's, `[B, R]`."""
    return logits.gather(1, labels[:, None]) - logits.gather(1, rivals)


def _to_plane(
    gradient: Tensor, distance: Tensor, length: Tensor, norm: str, least_move: float
) -> Tensor:
    """Return the smallest step against `gradient` that covers `distance`."""
    least = least_move * (math.prod(gradient.shape[1:]) ** 0.5 if norm == "l2" else 1)
    distance = distance.clamp_min(least)[:, None, None, None]
    if norm == "linf":
        return (-distance * gradient.sign()).to(gradient.dtype)
    return (-distance / length[:, None, None, None] * gradient).to(gradient.dtype)
