"""adv-lib's own attacks under our option names, where they keep the contract: `--engine adv-lib`.

What surrounds them is ours: they see images that the model gets right, in the ordinary layout (on
images laid out channels last, their projections change a copy); what does not fool it comes back
clean; and whoever draws random numbers attacks one image at a time, with a stream of its own.
adv-lib is an extra, and imported when one of them runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.attacks.minimum_norm import attack_correct, fooled_by
from rlskit.attacks.randomness import image_generators
from rlskit.attacks.upstream import global_rng
from rlskit.seeds import Purpose
from rlskit.torchvision_ops import declare_missing_operators

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
"""Our names of norms -> adv-lib's."""


@dataclass(frozen=True)
class AdvLib:
    """A minimum-norm attack of adv-lib, to be called under our option names.

    Attributes:
        attack: Name of its function.
        names: Our option -> the name of its argument.
        norms: In which it keeps the contract.
        fixed: Further arguments and their values.
        draws: What its random numbers are for; None where it draws none.
        least_steps: Fewer end in an error.
    """

    attack: str
    names: Mapping[str, str]
    norms: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    draws: Purpose | None = None
    least_steps: int = 1

    @property
    def options(self) -> set[str]:
        """The options it takes, under our names."""
        return {*self.names}

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        **options: Any,
    ) -> Tensor:
        """Run it; a failure, and what is misclassified anyway, comes back clean.

        Raises:
            UntrustedError: Non-finite logits or gradients.
        """
        given = {self.names[name]: value for name, value in options.items()}
        if "norm" in options:
            given[self.names["norm"]] = ORDER[options["norm"]]
        attack = partial(_function(self.attack), model, **self.fixed, **given)

        def solve(clean: Tensor, own: Tensor) -> Tensor:
            clean = clean.contiguous()
            found = self._found(attack, clean, own, generator)
            fooled = fooled_by(model, found, own, targeted=False)
            return torch.where(fooled[:, None, None, None], found, clean)

        return attack_correct(model, images, labels, solve)

    def _found(
        self,
        attack: Callable[[Tensor, Tensor], Tensor],
        clean: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        if self.draws is None:
            return attack(clean, labels).detach()
        found = torch.empty_like(clean)
        for i, stream in enumerate(image_generators(clean, generator, self.draws)):
            with global_rng(stream, clean.device):
                found[i : i + 1] = attack(clean[i : i + 1], labels[i : i + 1]).detach()
        return found


def _function(name: str) -> Callable[..., Tensor]:
    """Return a function of adv-lib, which imports torchvision and asks distutils for versions."""
    declare_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from adv_lib import attacks
    function: Callable[..., Tensor] = getattr(attacks, name)
    return function
