"""OnePixel: a few pixels of any colour, found by differential evolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.one_by_one import attack_one_by_one
from rlskit.attacks.passes import Passes, Setting
from rlskit.seeds import Purpose


def onepixel(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    pixels: int = 1,
    steps: int = 10,
    population: int = 10,
    generator: torch.Generator,
) -> Tensor:
    """Evolve places and colours of pixels that lower the label's probability.

    Su et al. 2019, "One pixel attack for fooling deep neural networks"
    (https://arxiv.org/abs/1710.08864), by torchattacks, with its defaults; the paper evolves 400
    candidates for 100 generations. It needs the model's probabilities only.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        pixels: How many pixels may change, in all their channels.
        steps: Most generations; an image is done at the first that holds a fooling candidate.
        population: Candidates of a generation, rounded down to a multiple of the numbers that make
            up one, `pixels * (2 + C)`, but at least that many, and at least 5.
        generator: Its seed and the image's own pixels fix the result.

    Returns:
        Images in [0, 1], at most `pixels` pixels of each changed; the clean image where it was
        misclassified already or where the attack failed.

    Raises:
        UntrustedError: Non-finite logits.
    """
    pixels = min(pixels, images[0, 0].numel())  # candidates grow with them, and so does memory
    return attack_one_by_one(
        Purpose.ONEPIXEL, model, images, labels,
        generator=generator, pixels=pixels, steps=steps, popsize=population,
    )  # fmt: skip


def onepixel_passes(
    setting: Setting, *, pixels: int, steps: int, population: int, **_: object
) -> Passes:
    """Count what `onepixel` asks for where it never fools the model."""
    channels, height, width = setting.shape
    numbers = min(pixels, height * width) * (2 + channels)
    candidates = max(5, numbers * max(1, population // numbers))
    return Passes(2 + candidates * (steps + 1) + steps, 0)
