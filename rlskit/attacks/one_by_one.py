"""torchattacks' black-box attacks, one image at a time, each with random numbers of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlskit.attacks.losses import margin
from rlskit.attacks.minimum_norm import attack_correct
from rlskit.attacks.randomness import image_generators
from rlskit.attacks.upstream import run_torchattacks
from rlskit.seeds import Purpose


def attack_one_by_one(
    attack: Purpose,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    **arguments: Any,
) -> Tensor:
    """Run a class of torchattacks on every image alone, and keep what fools the model.

    These attacks draw from NumPy's global state, so that in one batch an image's result would
    depend on the images before it.

    Args:
        attack: Name of a class of torchattacks.
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        generator: Its seed and an image's own pixels are the seed of all that is drawn for it.
        arguments: torchattacks' own arguments.

    Returns:
        Fooling images in [0, 1]; the clean image where it was misclassified already or where the
        attack failed.

    Raises:
        UntrustedError: Non-finite logits.
    """

    def solve(clean: Tensor, own: Tensor) -> Tensor:
        found = torch.empty_like(clean)
        for i, stream in enumerate(image_generators(clean, generator, attack)):
            with _seeded_globals(stream):
                found[i : i + 1] = run_torchattacks(
                    attack, model, clean[i : i + 1], own[i : i + 1], generator=stream, **arguments
                )
        with torch.no_grad():
            fooled = margin(model(found), own) < 0
        return torch.where(fooled[:, None, None, None], found, clean)

    return attack_correct(model, images, labels, solve)


@contextmanager
def _seeded_globals(stream: torch.Generator) -> Iterator[None]:
    """Seed the global states of NumPy and of `random` from a stream; give them back as they were.

    `run_torchattacks` does the same for torch's.
    """
    of_numpy, of_random = np.random.get_state(), random.getstate()  # noqa: NPY002
    seed = int(torch.randint(2**32, (), generator=stream))
    try:
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_random)
