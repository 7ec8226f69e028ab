"""Gaussian noise on the weights (Parametric Noise Injection, He et al. 2019, arXiv 1811.09310).

Each weight of a convolution or linear map gets noise in proportion to the spread of its tensor, in
training too. They learn the factor of each layer, starting from 0.25; here it is one that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.perturbed import Intercept
from rlskit.defenses.variates import Variates
from rlskit.models.banks import BankedModel

SAMPLES = 10
SETTINGS = {"alpha": 0.25}
"""Standard deviation of the noise, as a share of that of the weights."""

_MAPS = (F.conv1d, F.conv2d, F.conv3d, F.linear)


def perturb(model: BankedModel) -> Perturb:
    """Return a context in which convolutions and linear maps have noisy weights."""
    alpha = model.card.settings["alpha"]

    @contextmanager
    def shaking(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        def shake(
            function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            images, weight, *rest = args
            noise = variates.normal((1, *weight.shape), weight)[0]
            spread = weight.detach().std(correction=0)
            return function(images, weight + alpha * spread * noise, *rest, **kwargs)

        with Intercept(_MAPS, shake):
            yield

    return shaking
