"""Random Normalization Aggregation (Dong et al. 2022, NeurIPS), in training too.

Every BatchNorm normalises either with its own statistics or with those of each image's groups of
channels; a draw says at each which, and so does a training step. Their kinds have weights of their
own; here they share the BatchNorm's. (Banks of weights, of one kind: `--granularity norm`.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.perturbed import Intercept
from rlskit.defenses.variates import Variates
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SAMPLES = 10
SETTINGS = {"largest_group": 1.0}
"""Channels that are normalised together: 1, 2, 4, ... up to this. Theirs is 1, the instance's."""


def perturb(model: BankedModel) -> Perturb:
    """Return a context in which each BatchNorm normalises in a random way."""
    largest = int(model.card.settings["largest_group"])

    @contextmanager
    def mixing(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        def mixed(
            function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            batch = function(*args, **kwargs)  # whichever it is, the statistics are kept up
            given = _parameters(*args, **kwargs)
            images = given["input"]
            sizes = group_sizes(images, largest)
            if not sizes:
                return batch
            (share,) = variates.choices(1)
            if not (chosen := int(share * (1 + len(sizes)))):
                return batch
            groups = images.shape[1] // sizes[chosen - 1]
            return F.group_norm(images, groups, given["weight"], given["bias"], given["eps"])

        with Intercept((F.batch_norm,), mixed):
            yield

    return mixing


def _parameters(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of `F.batch_norm` by name."""
    bound = inspect.signature(F.batch_norm).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def group_sizes(images: Tensor, largest: int) -> list[int]:
    """Return how many channels can be normalised together, `[B, C, ...]`: 1, 2, 4, ... `largest`.

    They divide C; and a group is of two values or more, or nothing would be left of it.
    """
    channels, pixels = images.shape[1], images[0, 0].numel()
    powers = (2**exponent for exponent in range(largest.bit_length()))
    return [size for size in powers if channels % size == 0 and size * pixels > 1]


def check(model: BankedModel) -> None:
    """Require a number of channels.

    Raises:
        RequestError: It is none.
    """
    largest = model.card.settings["largest_group"]
    if largest < 1 or int(largest) != largest:
        raise RequestError(
            f"the largest_group of `settings` is a whole number of channels, not {largest:g}"
        )
