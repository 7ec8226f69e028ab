"""Which class a targeted attack aims at: `--target random`, `least-likely`, or a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.randomness import image_generators
from rlskit.errors import RequestError
from rlskit.seeds import Purpose

TARGETS = ("random", "least-likely")
"""What `--target` may be besides the number of a class."""


@torch.no_grad()
def choose_targets(
    target: str | int, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Return each image's target class, long `[B]`; its label where that is the class given.

    Args:
        target: One of `TARGETS`, or a class for all images.
        model: Maps images to logits `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: True classes, long `[B]`; `random` and `least-likely` never choose them.
        generator: Its seed is that of `random`, which is a function of it and of the image.

    Raises:
        RequestError: There is no class of that number.
        UntrustedError: Non-finite logits.
    """
    with under_attack(model), torch.no_grad():
        logits: Tensor = model(images)
    classes = logits.shape[1]
    if isinstance(target, int):
        if target >= classes:
            raise RequestError(f"`target` {target} is no class: there are {classes}, from 0")
        return torch.full_like(labels, target)
    if target == "least-likely":
        return logits.scatter(1, labels[:, None], float("inf")).argmin(1)
    ahead = [
        int(torch.randint(1, classes, (), generator=stream))
        for stream in image_generators(images, generator, Purpose.TARGET)
    ]
    return (labels + torch.tensor(ahead).to(labels)) % classes
