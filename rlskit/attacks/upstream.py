"""torchattacks' own attacks, untouched, under our option names: `--engine torchattacks`.

Only what surrounds them is ours: the global random state comes from the generator and goes back to
it, standard output stays clean, the model is given back as it was, and non-finite numbers are an
error. torchattacks is an extra, and imported when one of them runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.errors import RequestError

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Our names of norms -> torchattacks'."""


def require(extra: str, who: str) -> None:
    """Require an extra, before anything runs that needs it.

    Args:
        extra: Its name, which is that of the package it brings.
        who: The argument that asks for it.

    Raises:
        RequestError: It is not installed.
    """
    if importlib.util.find_spec(extra.replace("-", "_")) is None:
        raise RequestError(
            f"{who} needs {extra}, which is not installed: pip install 'rlskit[{extra}]' brings it"
        )


@dataclass(frozen=True)
class Upstream:
    """An attack of torchattacks, to be called under our option names.

    Attributes:
        attack: Name of its class; or one for each decision rule.
        names: Our option -> the name of its argument.
        fixed: Further arguments and their values.
        least_steps: Fewer end in a division by zero.
        least_classes: Fewer end in an index out of range.
        counts_classes: Whether it must be told the number of classes.
        seeds_itself: Whether it reseeds torch with an argument of its own, or with the time.
    """

    attack: str | Mapping[str, str]
    names: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    least_steps: int = 1
    least_classes: int = 2
    counts_classes: bool = False
    seeds_itself: bool = False

    @property
    def options(self) -> set[str]:
        """The options it takes, under our names."""
        return {*self.names} | (set() if isinstance(self.attack, str) else {"decision_rule"})

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        **options: Any,
    ) -> Tensor:
        """Run it; see `run_torchattacks`.

        Raises:
            RequestError: Too few steps or classes.
            UntrustedError: Non-finite logits or gradients.
        """
        if options.get("steps", self.least_steps) < self.least_steps:
            raise RequestError(
                f"torchattacks needs `steps` of at least {self.least_steps} here, "
                f"not {options['steps']}"
            )
        attack = self.attack
        if not isinstance(attack, str):
            attack = attack[options.pop("decision_rule")]
        given = {self.names[name]: value for name, value in options.items()}
        if "norm" in options:
            given[self.names["norm"]] = NORMS[options["norm"]]
        if self.seeds_itself:
            given["seed"] = int(torch.randint(2**31, (), generator=generator))
        if self.counts_classes or self.least_classes > 2:
            classes = _count_classes(model, images)
            if classes < self.least_classes:
                raise RequestError(
                    f"torchattacks' {attack} needs at least {self.least_classes} classes here, "
                    f"not {classes}"
                )
            if self.counts_classes:
                given["n_classes"] = classes
        return run_torchattacks(
            attack, model, images, labels, generator=generator, **{**self.fixed, **given}
        )


def _count_classes(model: nn.Module, images: Tensor) -> int:
    with under_attack(model), torch.no_grad():
        return int(model(images[:1]).shape[1])


def run_torchattacks(
    attack: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    **arguments: Any,
) -> Tensor:
    """Return what `torchattacks.<attack>(model, **arguments)(images, labels)` returns, bit for bit.

    With images on the CPU, a generator seeded with `s` gives what `torch.manual_seed(s)` before a
    direct call gives; the generator is left in the state that the attack reached.

    Args:
        attack: Name of a class of torchattacks.
        model: Maps images to logits; it may be without parameters.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        generator: Source of all randomness.
        arguments: torchattacks' own arguments.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    import torchattacks

    with under_attack(model), global_rng(generator, images.device):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when there is no parameter
            attacker = getattr(torchattacks, attack)(model, **arguments)
        attacker.set_device(images.device)
        adversarial: Tensor = attacker(images, labels)
    return adversarial.detach()


@contextlib.contextmanager
def global_rng(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Fork the global random state, start it from `generator`, and advance `generator` with it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if cuda:  # a CPU generator's state does not fit a GPU: one number of it seeds both
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            yield
        else:
            torch.set_rng_state(generator.get_state())
            yield
            generator.set_state(torch.get_rng_state())
