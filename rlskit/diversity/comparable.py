"""How many draws of a model are compared with each other, and under which options."""

from __future__ import annotations

from typing import Any

from rlskit.defenses import defense_of
from rlskit.errors import RequestError
from rlskit.evaluation import EvalOptions
from rlskit.models.banks import BankedModel


def comparing(model: BankedModel, what: str, n_samples: int, **options: Any) -> EvalOptions:
    """Return the options of comparing draws: all that are asked for, or all there are.

    Args:
        model: The defended model.
        what: What is measured, for people.
        n_samples: At least 2.
        **options: Further fields of `EvalOptions`.

    Raises:
        RequestError: Fewer draws are asked for, or an option is wrong.
    """
    if n_samples < 2:
        raise RequestError(f"{what} draws: `n_samples` must be 2 or more, not {n_samples}")
    count = min(n_samples, defense_of(model).distinct(model) or n_samples)
    return EvalOptions(n_samples=count, **options)
