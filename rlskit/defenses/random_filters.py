"""Random Projection Filters (Dong & Xu 2023, CVPR), in training too.

Most filters of the first convolution are Gaussian random projections, new ones for every draw and
every training step; the others are learned beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.perturbed import Intercept
from rlskit.defenses.variates import Variates
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SAMPLES = 10
SETTINGS = {"share": 0.75}
"""Share of the first convolution's filters that are random: theirs are 48 of 64."""


def perturb(model: BankedModel) -> Perturb:
    """Return a context in which the first convolution has random filters."""
    share = model.card.settings["share"]

    @contextmanager
    def projecting(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        first = iter([True])

        def project(
            function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            images, weight, *rest = args
            if next(first, False):
                learned = len(weight) - round(share * len(weight))
                chosen = variates.normal((1, *weight[learned:].shape), weight)[0]
                side = math.sqrt(math.prod(weight.shape[2:]))  # their variance is 1 / r^2
                weight = torch.cat([weight[:learned], chosen / side])
            return function(images, weight, *rest, **kwargs)

        with Intercept((F.conv1d, F.conv2d, F.conv3d), project):
            yield

    return projecting


def check(model: BankedModel) -> None:
    """Require a share.

    Raises:
        RequestError: It is none.
    """
    share = model.card.settings["share"]
    if not 0 <= share <= 1:
        raise RequestError(f"the share of `settings` lies in [0, 1], not at {share:g}")
