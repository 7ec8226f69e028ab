"""Random self-ensemble: noise before every convolution (Liu et al. 2018, arXiv 1712.00673).

Trained and tested with the noise; N = 50 draws answer together.
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
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SAMPLES = 50
SETTINGS = {"init_sigma": 0.2, "inner_sigma": 0.1}
"""Standard deviations of the noise: before the first convolution, in pixels of [0, 1] (twice that
in the scale [-1, 1]), and before every other, in units of its input."""

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def perturb(model: BankedModel) -> Perturb:
    """Return a context that adds noise to the input of every convolution that runs."""
    sigmas, std = model.card.settings, model.card.pixels.std

    @contextmanager
    def add_noise(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        first = iter([True])

        def convolve(
            function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            inputs: Tensor = args[0] if args else kwargs.pop("input")
            noise = variates.normal(inputs.shape, inputs)
            if next(first, False):
                noisy = inputs + sigmas["init_sigma"] * noise / _pixel_scale(inputs, std)
            else:
                noisy = inputs.add(noise, alpha=sigmas["inner_sigma"])
            return function(noisy, *args[1:], **kwargs)

        with Intercept(_CONVOLUTIONS, convolve):
            yield

    return add_noise


def _pixel_scale(inputs: Tensor, std: tuple[float, ...]) -> Tensor | float:
    """Return what normalisation divided pixels by, channel by channel where channels show."""
    if inputs.ndim == 4 and inputs.shape[1] == len(std):
        return inputs.new_tensor(std).view(-1, 1, 1)
    return sum(std) / len(std)


def check(model: BankedModel) -> None:
    """Require sigmas of at least 0.

    Raises:
        RequestError: One is not.
    """
    for name, sigma in model.card.settings.items():
        if not sigma >= 0:
            raise RequestError(f"`settings` {name} must be at least 0, not {sigma}")
