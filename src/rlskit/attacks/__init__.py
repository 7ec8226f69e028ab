"""The attacks, and how a request for one is checked and put into the pixel scale [0, 1].

`ATTACKS` lists them; `prepare` turns a name and options as a user states them into an attack that
is ready to run and checks what it returns.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.attacks import upstream
from rlskit.attacks.cw import cw
from rlskit.attacks.deepfool import deepfool
from rlskit.attacks.ead import ead
from rlskit.attacks.fgsm import fgsm
from rlskit.attacks.options import flag, in_unit_range, read
from rlskit.attacks.pgd import pgd
from rlskit.errors import RequestError
from rlskit.pixels import check_adversarial

__all__ = ["ATTACKS", "ENGINES", "Attack", "PreparedAttack", "prepare"]


@dataclass(frozen=True)
class Attack:
    """What is known about one attack.

    Attributes:
        title: Its name in words.
        run: Our function.
        upstream: torchattacks' own under the same option names; None where it has none.
        norm: The norm that `eps` bounds; None for an attack without a budget.
        minimises: What a minimum-norm attack minimises; None for an attack with a budget.
        gradient: Whether it needs the model's gradients.
        random: Whether its result depends on the generator.
        paper: Citation and link.
        defaults: Option -> default, those of section 4.2 of the RLS paper, stated in whatever scale
            `--pixel-range` names. None: derived from another option.
    """

    title: str
    run: Callable[..., Tensor]
    upstream: Callable[..., Tensor] | None
    norm: str | None
    minimises: str | None
    gradient: bool
    random: bool
    paper: str
    defaults: Mapping[str, Any]


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(
        title="Fast gradient sign method",
        run=fgsm,
        upstream=fgsm,
        norm="linf",
        minimises=None,
        gradient=True,
        random=False,
        paper="Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572",
        defaults={"eps": 0.01},
    ),
    "pgd": Attack(
        title="Projected gradient descent",
        run=pgd,
        upstream=pgd,
        norm="linf",
        minimises=None,
        gradient=True,
        random=True,
        paper="Madry et al. 2018, https://arxiv.org/abs/1706.06083",
        defaults={"eps": 0.01, "steps": 10, "step_size": None, "random_start": True},
    ),
    "deepfool": Attack(
        title="DeepFool",
        run=deepfool,
        upstream=upstream.deepfool,
        norm=None,
        minimises="l2 or linf",
        gradient=True,
        random=False,
        paper="Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599",
        defaults={"norm": "l2", "steps": 50, "overshoot": 0.02, "top_classes": 10},
    ),
    "cw": Attack(
        title="Carlini & Wagner",
        run=cw,
        upstream=upstream.cw,
        norm=None,
        minimises="l2",
        gradient=True,
        random=False,
        paper="Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644",
        defaults={"c": 0.01, "kappa": 0.1, "steps": 1000, "lr": 0.01, "search_steps": 1},
    ),
    "ead": Attack(
        title="Elastic-net attack",
        run=ead,
        upstream=upstream.ead,
        norm=None,
        minimises="elastic net",
        gradient=True,
        random=False,
        paper="Chen et al. 2018, https://arxiv.org/abs/1709.04114",
        defaults={
            "c": 0.01,
            "beta": 0.01,
            "kappa": 0.1,
            "steps": 1000,
            "lr": 0.01,
            "search_steps": 1,
            "decision_rule": "en",
            "optimizer": "adam",
        },
    ),
}
"""Name of a method -> what is known about it."""

ENGINES = ("rlskit", "torchattacks")
"""Whose implementation runs."""


@dataclass(frozen=True)
class PreparedAttack:
    """An attack with all its options checked, ready to run on images in [0, 1].

    Attributes:
        method: A key of `ATTACKS`.
        engine: One of `ENGINES`.
        params: Every option and its value, in [0, 1] units.
        stated: The same in the scale that the request named, and that scale as `pixel_range`.
    """

    method: str
    engine: str
    params: Mapping[str, Any] = field(hash=False)
    stated: Mapping[str, Any] = field(hash=False)

    @property
    def norm(self) -> str | None:
        """The norm that `eps` bounds; None for an attack without a budget."""
        return ATTACKS[self.method].norm

    @property
    def eps(self) -> float | None:
        """The budget, in [0, 1]; None for an attack without one."""
        return self.params.get("eps")

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Return the adversarial images, after checking shape, range and budget.

        Args:
            model: Maps images to logits or log-probabilities `[B, classes]`.
            images: `[B, C, H, W]` in [0, 1].
            labels: Long `[B]`.
            generator: Source of all randomness.

        Raises:
            UntrustedError: Non-finite logits or gradients, or the attack broke its promise.
        """
        run = _function(self.method, self.engine)
        adversarial = run(model, images, labels, generator=generator, **self.params)
        check_adversarial(images, adversarial, self.norm, self.eps)
        return adversarial


def prepare(
    method: str, *, pixel_range: str = "0:1", engine: str = "rlskit", **options: Any
) -> PreparedAttack:
    """Check a request for an attack and put its options into the pixel scale [0, 1].

    Args:
        method: A key of `ATTACKS`.
        pixel_range: The scale the options are stated in, a key of `rlskit.pixels.PIXEL_RANGES`.
        engine: One of `ENGINES`.
        options: As a user states them: numbers or strings such as `8/255`; None means not given.

    Raises:
        RequestError: An unknown method, engine or scale, an option that the method does not take,
            or a value that it cannot have.
    """
    run = _function(method, engine)
    given = {option: value for option, value in options.items() if value is not None}
    taken = inspect.signature(run).parameters
    defaults = {k: value for k, value in ATTACKS[method].defaults.items() if k in taken}
    for option in (option for option in given if option not in defaults):
        flags = ", ".join(map(flag, defaults))
        raise RequestError(f"{flag(option)} is no option of {method} ({engine}): it takes {flags}")
    stated: dict[str, Any] = {
        option: None if value is None else read(option, value, pixel_range)
        for option, value in (defaults | given).items()
    }
    if "step_size" in stated and stated["step_size"] is None:
        stated["step_size"] = stated["eps"] / 10
    params = in_unit_range(stated, pixel_range)
    return PreparedAttack(method, engine, params, stated | {"pixel_range": pixel_range})


def _function(method: str, engine: str) -> Callable[..., Tensor]:
    if method not in ATTACKS:
        near = difflib.get_close_matches(method, ATTACKS, cutoff=0.4) or ATTACKS
        raise RequestError(f"--method {method!r} is unknown; did you mean {' or '.join(near)}?")
    if engine not in ENGINES:
        raise RequestError(f"--engine {engine!r} is unknown; it is {' or '.join(ENGINES)}")
    run = ATTACKS[method].run if engine == "rlskit" else ATTACKS[method].upstream
    if run is None:
        raise RequestError(f"torchattacks has no {method}; use --engine rlskit")
    return run
