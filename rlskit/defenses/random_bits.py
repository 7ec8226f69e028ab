"""Random precision of the weights (after Double-Win Quant, Fu et al. 2021, ICML).

A draw computes every convolution and linear map with one number of bits; so does a training step,
to which rounding has the gradient of the identity. They round activations, too: that would blow up
the last bit of a sum, which differs from batch to batch, so that an image's answer would depend on
its batch-mates.
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

SAMPLES = 10
SETTINGS = {"least_bits": 4.0, "most_bits": 8.0}
"""Range of the precisions, each as likely; theirs go from 4 to 16, too."""

_MAPS = (F.conv1d, F.conv2d, F.conv3d, F.linear)


def perturb(model: BankedModel) -> Perturb:
    """Return a context in which convolutions and linear maps have rounded weights."""
    least, most = (int(model.card.settings[name]) for name in ("least_bits", "most_bits"))

    @contextmanager
    def rounding(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        (share,) = variates.choices(1)
        bits = least + int(share * (most - least + 1))

        def rounded(
            function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            images, weight, *rest = args
            return function(images, quantized(weight, bits), *rest, **kwargs)

        with Intercept(_MAPS, rounded):
            yield

    return rounding


def quantized(values: Tensor, bits: int) -> Tensor:
    """Return values rounded to the nearest of `2**bits - 1`, evenly from minus to plus the largest.

    Args:
        values: Of any shape.
        bits: At least 2.
    """
    step = (values.detach().abs().amax() / (2 ** (bits - 1) - 1)).clamp_min(1e-12)
    rounded: Tensor = values + ((values / step).round() * step - values).detach()
    return rounded


def check(model: BankedModel) -> None:
    """Require a range of precisions.

    Raises:
        RequestError: It is none.
    """
    least, most = (model.card.settings[name] for name in ("least_bits", "most_bits"))
    if not 2 <= least <= most <= 24 or int(least) != least or int(most) != most:
        raise RequestError(
            f"the bits of `settings` are whole numbers from 2 to 24, not {least:g} to {most:g}"
        )
