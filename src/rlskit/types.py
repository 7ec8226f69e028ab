"""Shapes of the callables that the layers hand to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class AttackFn(Protocol):
    """An attack: a function from clean images to adversarial images.

    `images` is float `[B, C, H, W]` in [0, 1], `labels` is long `[B]`, `model` maps images to
    logits (or log-probabilities) `[B, classes]`. The result has the shape of `images` and lies in
    [0, 1]; where the attack failed it is the clean image. All randomness comes from `generator`.
    """

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        **options: Any,
    ) -> Tensor:
        """Return the adversarial images."""
        ...


class Progress(Protocol):
    """Told how far a long step is: `done` of `total`, and facts worth showing beside the bar."""

    def __call__(self, step: str, done: int, total: int, **facts: float) -> None:
        """Note the progress of `step`."""
        ...


def no_progress(step: str, done: int, total: int, **facts: float) -> None:
    """Ignore progress; the default of the library's long functions."""
