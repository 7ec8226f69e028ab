"""Stochastic dropout: whole channels are dropped after each stage, at test time too.

The paper's citation is unclear; ours is spatial dropout (Tompson et al. 2015, arXiv 1411.4280) with
p = 0.3 and N = 10. Places are the layers of the model's partition that hold several weights:
stages, as it is converted by default; blocks with `--granularity block`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.variates import Variates
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SAMPLES = 10
SETTINGS = {"rate": 0.3}
"""Probability that a channel is dropped; the others are scaled by 1 / (1 - rate)."""


def perturb(model: BankedModel) -> Perturb:
    """Return a context that drops channels of what each place puts out."""
    rate, places = model.card.settings["rate"], _places(model)

    @contextmanager
    def dropping(network: nn.Module, variates: Variates) -> Iterator[None]:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
            if not isinstance(output, Tensor) or output.ndim < 3:
                return output
            kept = variates.uniform(_channels(output), output) >= rate
            return output * kept / (1 - rate)

        with ExitStack() as hooks:
            for place in places:
                handle = network.get_submodule(place).register_forward_hook(drop)
                hooks.callback(handle.remove)
            yield

    return dropping


def check(model: BankedModel) -> None:
    """Require a rate below 1.

    Raises:
        RequestError: It is not.
    """
    rate = model.card.settings["rate"]
    if not 0 <= rate < 1:
        raise RequestError(f"`settings` rate is a share in [0, 1), not {rate}")


def _places(model: BankedModel) -> list[str]:
    """Return the paths of the modules that are a layer of the partition with several weights."""
    modules = dict(model.banks[0].named_modules())
    return [
        layer.name
        for layer in model.partition.layers
        if layer.name in modules
        and sum(weight.ndim > 1 for weight in modules[layer.name].parameters()) > 1
    ]


def _channels(output: Tensor) -> tuple[int, ...]:
    """Return the shape of a mask with one number per image and channel.

    Channels come last in tokens `[B, n, C]` and, told by two equal sides before them, in
    `[B, H, W, C]`; second otherwise.
    """
    batch, *sides = output.shape
    last = len(sides) == 2 or (len(sides) == 3 and sides[0] == sides[1] != sides[2])
    ones = [1] * (len(sides) - 1)
    return (batch, *ones, sides[-1]) if last else (batch, sides[0], *ones)
