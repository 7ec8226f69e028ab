"""Pixle: pixels of the image, copied to other places of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.one_by_one import attack_one_by_one
from rlskit.attacks.passes import Passes, Setting
from rlskit.errors import RequestError
from rlskit.seeds import Purpose


def pixle(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    restarts: int = 20,
    steps: int = 10,
    smallest_patch: int = 2,
    largest_patch: int = 10,
    generator: torch.Generator,
) -> Tensor:
    """Copy the pixels of random patches to random places, as long as the label's probability falls.

    Pomponi et al. 2022, "Pixle: a fast and effective black-box attack based on rearranging pixels"
    (https://arxiv.org/abs/2202.02236), by torchattacks, with its defaults and random places. It
    needs the model's probabilities only. Places are never in the last row and column, and patches
    never start there: so torchattacks draws them.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1], H = W: torchattacks swaps the axes of the places.
        labels: Long `[B]`.
        restarts: Patches that are kept, one on top of the other: the best of each `steps` tries.
        steps: Tries per restart; an image is done at the first that fools the model.
        smallest_patch: Least height and width of a patch.
        largest_patch: Greatest height and width; larger than the image, it is cut off.
        generator: Its seed and the image's own pixels fix the result.

    Returns:
        Images all of whose pixels are pixels of the clean image, at most
        `restarts * largest_patch**2` of them changed; the clean image where it was misclassified
        already or where the attack failed.

    Raises:
        RequestError: The images are not square, or the largest patch is below the smallest.
        UntrustedError: Non-finite logits.
    """
    height, width = images.shape[2:]
    if height != width:
        raise RequestError(f"pixle needs square images, not {height} x {width}")
    if largest_patch < smallest_patch:
        raise RequestError(
            f"`largest_patch` {largest_patch} must be at least `smallest_patch` {smallest_patch}"
        )
    patch = (smallest_patch, largest_patch)
    return attack_one_by_one(
        Purpose.PIXLE, model, images, labels,
        generator=generator, restarts=restarts, max_iterations=steps,
        x_dimensions=patch, y_dimensions=patch,
    )  # fmt: skip


def pixle_passes(_: Setting, *, restarts: int, steps: int, **__: object) -> Passes:
    """Count what `pixle` asks for where it never fools the model: two calls a try."""
    return Passes(3 + 2 * restarts * steps, 0)
