"""What a defense is: which sampled model a draw is, and what is done to it while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlskit.defenses.variates import Variates
from rlskit.models.banks import BankedModel, Classifier
from rlskit.seeds import Purpose

Settings = Mapping[str, float]
"""A defense's own numbers by name, such as RSE's sigmas."""

Perturb = Callable[[nn.Module, Variates], AbstractContextManager[None]]
"""(network, variates) -> a context in which one forward pass of the network is perturbed."""


def bank_zero(model: BankedModel, seed: int, purpose: Purpose, *indices: int) -> Tensor:  # noqa: ARG001
    """Return the plan of the one network there is, whatever the key."""
    return torch.zeros(model.num_layers, dtype=torch.long)


def bank_zero_alone(model: BankedModel, size: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Return the one plan there is, long `[1, L]`."""
    return torch.zeros(1, model.num_layers, dtype=torch.long)


@dataclass(frozen=True)
class Defense:
    """One row of the table of defenses; what is left out is as for the undefended network.

    Attributes:
        summary: One line for the tables.
        samples: model -> the number N of draws that answer together unless told otherwise.
        distinct: model -> the number of draws there are, where they come without replacement; None
            where each is sampled anew.
        plan: (model, seed, purpose, repeat, index) -> the plan of a draw, long `[L]`; the index of
            the image follows where each image has draws of its own.
        group: (model, group size K, generator) -> the plans of one training step, long `[K, L]`.
        perturb: model -> what is done to its networks while they run; None for nothing.
        post_hoc: Whether `perturb` waits until the network is trained.
        folds: Whether a BatchNorm may be folded into its convolution: not where `perturb` acts on
            weights, which would be others.
        draw: (model, sampled model, seed) -> the draw, where it is more than the sampled model and
            what `perturb` does to it.
        loss: (logits `[K, B, classes]`, labels `[B]`, settings) -> the scalar that a training step
            minimises; None for the group's loss, or the members' own where `separate`.
        penalty: (logits, labels, the images that each of the K was shown, settings) -> what is
            added to the loss; it may differentiate the logits by the images.
        separate: Whether the group's members are trained each on its own loss.
        settings: Names and defaults of the numbers that `--settings` changes.
        check: model -> None; raises `RequestError` where it or its settings do not suit.
        banks: M, unless told otherwise.
        granularity: The granularity it is converted with unless told otherwise.
    """

    summary: str
    samples: Callable[[BankedModel], int] = lambda _: 1
    distinct: Callable[[BankedModel], int | None] = lambda _: None
    plan: Callable[..., Tensor] = bank_zero
    group: Callable[[BankedModel, int, torch.Generator], Tensor] = bank_zero_alone
    perturb: Callable[[BankedModel], Perturb] | None = None
    post_hoc: bool = False
    folds: bool = True
    draw: Callable[[BankedModel, Classifier, int], nn.Module] | None = None
    loss: Callable[[Tensor, Tensor, Settings], Tensor] | None = None
    penalty: Callable[[Tensor, Tensor, list[Tensor], Settings], Tensor] | None = None
    separate: bool = False
    settings: Settings = field(default_factory=dict)
    check: Callable[[BankedModel], None] = lambda _: None
    banks: int = 1
    granularity: str = "model"

    @property
    def acts(self) -> bool:
        """Whether it does something to a network while that runs."""
        return self.perturb is not None or self.draw is not None
