"""Stochastic activation pruning, after training (Dhillon et al. 2018, arXiv 1803.01442).

After each ReLU, r = fraction x dim activations are drawn with probabilities p_j = |h_j| / sum |h|,
with replacement; those never drawn are zeroed, the others divided by their probability of being
drawn at all, 1 - (1 - p_j)^r. We let each activation be drawn or not by itself with that
probability: a draw then is a threshold per activation, which an attacker's small step rarely
crosses, where r draws from a distribution that depends on the image would be other ones at every
step (compare Athalye et al. 2018, arXiv 1802.00420).
"""

from __future__ import annotations

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

SAMPLES = 100
SETTINGS = {"fraction": 1.0}
"""Draws per activation."""

_RELUS = (
    F.relu, F.relu_, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
)  # fmt: skip
_LARGEST = 1 - 1e-6  # of p: the logarithm of 1 - p has no derivative at 1


def perturb(model: BankedModel) -> Perturb:
    """Return a context that prunes what every ReLU puts out."""
    fraction = model.card.settings["fraction"]

    @contextmanager
    def pruning(network: nn.Module, variates: Variates) -> Iterator[None]:  # noqa: ARG001
        def prune(
            relu: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Tensor:
            activations = relu(*args, **kwargs)
            if relu is F.hardtanh and _lower_bound(*args[1:], **kwargs) != 0:
                return activations
            return pruned(activations, variates.uniform(activations.shape, activations), fraction)

        with Intercept(_RELUS, prune):
            yield

    return pruning


def pruned(activations: Tensor, uniform: Tensor, fraction: float) -> Tensor:
    """Return the activations with some zeroed and the others scaled; the mean is the same.

    Args:
        activations: `[B, ...]`, of which each image's are pruned by themselves.
        uniform: Numbers in [0, 1), `[B, ...]` or `[1, ...]`: an activation stays where its number
            is below its probability.
        fraction: Draws per activation.
    """
    sizes = activations.abs().flatten(1)
    p = sizes / sizes.sum(1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
    draws = fraction * sizes.shape[1]
    stays = -torch.expm1(draws * torch.log1p(-p.clamp_max(_LARGEST))).view_as(activations)
    kept = uniform < stays
    return torch.where(kept, activations / torch.where(kept, stays, 1), 0)


def _lower_bound(min_val: float = -1.0, *_: Any, **__: Any) -> float:
    """Return `hardtanh`'s: it is a ReLU6 from 0 on, as `nn.ReLU6` calls it."""
    return min_val


def check(model: BankedModel) -> None:
    """Require some draws.

    Raises:
        RequestError: There are none.
    """
    fraction = model.card.settings["fraction"]
    if not fraction > 0:
        raise RequestError(f"`settings` fraction must be positive, not {fraction}")
