"""What the minimum-norm attacks share: whom they attack, when they won, how they choose `c`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import Loss, margin

NO_LENGTH = 1e-12
"""What takes the place of a length of 0 that something without a direction is divided by."""


def shortfall(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Return by how much an attack misses, `[B]`; negative where it succeeded.

    Untargeted it is the lead of the label over the best other logit, targeted the lead of the best
    other logit over the target's.

    Args:
        logits: Logits or log-probabilities, `[B, classes]`.
        labels: True classes, or target classes, long `[B]`.
        targeted: Which of the two.
    """
    lead = margin(logits, labels)
    return -lead if targeted else lead


def wins(missing: Tensor, kappa: float) -> Tensor:
    """Say where a shortfall is success with confidence `kappa`, bool `[B]`; a tie never is."""
    return (missing <= -kappa) & (missing < 0)


def look(
    model: nn.Module, x: Tensor, labels: Tensor, loss: Loss, targeted: bool
) -> tuple[Tensor, Tensor]:
    """Return by how much the attack misses at `x`, `[B]`, and each image's gradient of the loss.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        x: `[B, C, H, W]`.
        labels: True classes, or target classes, long `[B]`.
        loss: (logits, labels) -> loss per image.
        targeted: Whether the labels are targets.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    (slope,) = torch.autograd.grad(loss(logits, labels).sum(), x)
    return shortfall(logits.detach(), labels, targeted), slope


@torch.no_grad()
def fooled_by(model: nn.Module, x: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Say where the attack succeeded, bool `[B]`; see `look`."""
    return wins(shortfall(model(x), labels, targeted), 0)


def attack_correct(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    solve: Callable[[Tensor, Tensor], Tensor],
    targeted: bool = False,
) -> Tensor:
    """Attack the images that `model` classifies correctly, and return the others unchanged.

    Targeted, those are attacked that it does not classify as the target.

    Args:
        model: Maps images to logits.
        images: `[B, C, H, W]` in [0, 1].
        labels: True classes, or target classes, long `[B]`.
        solve: Maps (images, labels) of those to attack to their adversarial images; where it fails,
            to the clean image.
        targeted: Whether the labels are targets.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    result = images.detach().clone()
    with under_attack(model):
        with torch.no_grad():
            todo = ((model(result).argmax(1) == labels) != targeted).nonzero().squeeze(1)
        if len(todo):
            result[todo] = solve(result[todo], labels[todo])
    return result


def keep_better(
    best: Tensor, best_distance: Tensor, candidate: Tensor, distance: Tensor, success: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each image's best so far, and its distance, after one more candidate.

    Args:
        best: The best images until now, `[B, C, H, W]`.
        best_distance: Their distances, `[B]`; inf where nothing succeeded yet.
        candidate: The new images.
        distance: Their distances.
        success: Where they fool the model, bool `[B]`.
    """
    better = success & (distance < best_distance)
    return (
        torch.where(better[:, None, None, None], candidate, best),
        torch.where(better, distance, best_distance),
    )


def search_constant(
    descend: Callable[[Tensor], tuple[Tensor, Tensor]], clean: Tensor, c: float, search_steps: int
) -> Tensor:
    """Run `descend` with a constant per image, `search_steps` times; return each image's best.

    As in Carlini & Wagner 2017 (section VI-A): where the attack succeeded, the constant is halved
    towards the largest that failed; where it failed, it grows tenfold until one succeeds.

    Args:
        descend: Maps the constants `[B]` to images and their distances (inf: no success).
        clean: The clean images, returned bitwise where no constant succeeded.
        c: The first constant; with one search step the only one.
        search_steps: Number of constants tried.
    """
    best = clean.clone()
    best_distance = clean.new_full((len(clean),), float("inf"))
    constant, low, high = (
        torch.full_like(best_distance, c),
        clean.new_zeros(len(clean)),
        best_distance,
    )
    for _ in range(search_steps):
        candidate, distance = descend(constant)
        success = distance.isfinite()
        best, best_distance = keep_better(best, best_distance, candidate, distance, success)
        high = torch.where(success, constant, high)
        low = torch.where(success, low, constant)
        constant = torch.where(high.isfinite(), (low + high) / 2, constant * 10)
    return best
