"""Defenses: anything that answers with a classifier when asked for a draw.

A draw is an ordinary module, images to logits, with no randomness left in it, and a pure function
of (model, seed, purpose, repeat, index). To add a defense, write one file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlskit.defenses import ensemble, none, rls
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

__all__ = ["DEFENSES", "Defense", "defense_of", "draws"]


@dataclass(frozen=True)
class Defense:
    """One row of the table of defenses.

    Attributes:
        draw: (model, seed, purpose, repeat, index) -> a draw.
        group: (model, group size K, generator) -> the plans of one training step, long `[K, L]`.
        separate: Whether the group's members are trained each on its own loss.
        samples: model -> the number N of draws that answer together unless told otherwise.
        distinct: model -> the number of draws there are, where they come without replacement; None
            where each is sampled anew.
        banks: M, unless told otherwise.
        granularity: The granularity it is converted with unless told otherwise.
        summary: One line for the tables.
    """

    draw: Callable[[BankedModel, int, str, int, int], nn.Module]
    group: Callable[[BankedModel, int, torch.Generator], Tensor]
    separate: bool
    samples: Callable[[BankedModel], int]
    distinct: Callable[[BankedModel], int | None]
    banks: int
    granularity: str
    summary: str


def _members(model: BankedModel) -> int:
    return model.num_banks


DEFENSES: dict[str, Defense] = {
    "none": Defense(
        none.draw, none.group, False, lambda _: 1, lambda _: 1, 1, "model",
        "the undefended network",
    ),
    "rls": Defense(
        rls.draw, rls.group, False, lambda _: rls.SAMPLES, lambda _: None, 2, "layer",
        "random layer sampling: each layer from a random bank",
    ),
    "ensemble": Defense(
        ensemble.draw, ensemble.group, True, _members, _members, 3, "model",
        "M networks trained separately, mean prediction",
    ),
}  # fmt: skip


def defense_of(model: BankedModel) -> Defense:
    """Return the defense that a model was converted for.

    Raises:
        RequestError: The model names one that there is not.
    """
    name = model.card.defense
    if name not in DEFENSES:
        raise RequestError(f"the defense {name!r} is unknown; it is one of {', '.join(DEFENSES)}")
    return DEFENSES[name]


def draws(
    model: BankedModel, count: int, *, seed: int, purpose: str, repeat: int = 0, first: int = 0
) -> list[nn.Module]:
    """Return `count` draws of the model's defense; those of a smaller count are the first of them.

    Args:
        model: The defended model.
        count: Number of draws, at least 1.
        seed: The user's seed.
        purpose: "attacker" and "defender" draws are independent.
        repeat: Index of the repeat.
        first: Index of the first draw.

    Raises:
        RequestError: `count` is below 1.
    """
    if count < 1:
        raise RequestError(f"the number of draws must be at least 1, not {count}")
    draw = defense_of(model).draw
    return [draw(model, seed, purpose, repeat, first + index) for index in range(count)]
