"""How a request for an attack is checked, and put into the pixel scale [0, 1]."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.arguments import argument
from rlskit.attacks.adv_lib import AdvLib
from rlskit.attacks.catalogue import ATTACKS, Attack
from rlskit.attacks.options import OPTIONS, in_unit_range, read
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.targets import choose_targets
from rlskit.attacks.upstream import require
from rlskit.errors import RequestError
from rlskit.pixels import check_adversarial

ENGINES = ("rlskit", "torchattacks", "adv-lib")
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
        known = ATTACKS[self.method]
        return self.params.get("norm", known.norms[0]) if known.has_budget else None

    @property
    def eps(self) -> float | None:
        """The budget, in [0, 1]; None for an attack without one."""
        return self.params.get("eps")

    @property
    def loss(self) -> str:
        """The key of `LOSSES` that it ascends; the margin of those that look for the boundary."""
        known = ATTACKS[self.method]
        loss = str({"loss": "margin", **known.defaults, **known.fixed, **self.params}["loss"])
        return "ce-saturating" if loss == "ce" and self.engine != "rlskit" else loss

    def with_loss(self, loss: str) -> PreparedAttack:
        """Return the same attack on another loss, also where its name says which."""
        return replace(self, params={**self.params, "loss": loss})

    @property
    def short(self) -> PreparedAttack:
        """The same attack with as few steps, runs and queries as show that it works."""
        few = {
            option: min(row.short, self.params[option])
            for option, row in OPTIONS.items()
            if row.short is not None and option in self.params
        }
        theirs = ATTACKS[self.method].of(self.engine)
        if theirs is not None and "steps" in few:
            few["steps"] = min(self.params["steps"], max(few["steps"], theirs.least_steps))
        return replace(self, params={**self.params, **few})

    def passes(self, setting: Setting) -> Passes:
        """Return what it costs per image and draw; an upper bound where the row says `at_most`.

        Of another engine's version, what ours would.
        """
        known = ATTACKS[self.method]
        found = known.passes(setting, **{**known.defaults, **known.fixed, **self.params})
        choice = 0 if self.params.get("target") is None else 1
        return found.and_then(Passes(choice, 0))

    def targets(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        """Return the class that each image is moved towards, long `[B]`; None where untargeted.

        See `__call__` for the arguments. An image whose label is its target cannot be attacked.

        Raises:
            RequestError: There is no class of that number.
            UntrustedError: Non-finite logits.
        """
        target = self.params.get("target")
        return None if target is None else choose_targets(target, model, images, labels, generator)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        targets: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Return the adversarial images, after checking shape, range and budget.

        Args:
            model: Maps images to logits or log-probabilities `[B, classes]`.
            images: `[B, C, H, W]` in [0, 1].
            labels: Long `[B]`.
            generator: Its seed is that of all randomness. An image whose label is the target asked
                for comes back unchanged.
            targets: What `targets` returned, where it was asked before.
            **more: Arguments of the attack that are not options, such as PGD's `start`.

        Raises:
            UntrustedError: Non-finite logits or gradients, or the attack broke its promise.
        """
        if targets is None:
            targets = self.targets(model, images, labels, generator)
        adversarial = self._run(model, images, labels, generator, targets, more)
        check_adversarial(images, adversarial, self.norm, self.eps)
        return adversarial

    def _run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        targets: Tensor | None,
        more: Mapping[str, Any],
    ) -> Tensor:
        known, options = ATTACKS[self.method], {**self.params, **more}
        if (theirs := known.of(self.engine)) is not None:
            return theirs(model, images, labels, generator=generator, **options)
        options = {**known.fixed, **options}
        options.pop("target", None)
        if targets is None:
            return known.run(model, images, labels, generator=generator, **options)
        moved = known.run(model, images, targets, targeted=True, generator=generator, **options)
        return torch.where((targets == labels)[:, None, None, None], images, moved)


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
            a value that it cannot have, or an extra is needed and not installed.
    """
    known = _known(method)
    defaults = _defaults(method, known, engine)
    if known.borrowed:
        require("torchattacks", f"`{method=}`")
    elif engine != "rlskit":
        require(engine, f"`{engine=}`")
    given = {option: value for option, value in options.items() if value is not None}
    for option in (option for option in given if option not in defaults):
        takes = ", ".join(map(argument, defaults))
        raise RequestError(
            f"{argument(option)} is no option of {method} ({engine}): it takes {takes}"
        )
    if engine == "torchattacks" and given.get("loss", "ce") not in ("ce", "margin"):
        raise RequestError(f"torchattacks has no `loss={given['loss']!r}`; it has ce and margin")
    norm = given.get("norm", known.norms[0])
    if norm not in known.norms:
        known_norms = " or ".join(known.norms)
        raise RequestError(f"`norm` {norm!r} is unknown to {method}; it is {known_norms}")
    theirs = known.of(engine)
    if isinstance(theirs, AdvLib) and norm not in theirs.norms:
        raise RequestError(
            f"adv-lib's {method} in {norm} may break off, as its batch-mates decide; "
            "use `engine='rlskit'`"
        )
    if known.has_budget and norm != known.norms[0] and "eps" not in given:
        raise RequestError(
            f"`norm={norm!r}` needs `eps`, as 0.5: the default of {method} is a budget in "
            f"{known.norms[0]}"
        )
    stated: dict[str, Any] = {
        option: None if value is None else read(option, value, pixel_range, norm)
        for option, value in (defaults | given).items()
    }
    if "step_size" in stated and stated["step_size"] is None:
        stated["step_size"] = stated["eps"] / 10
    params = in_unit_range(stated, pixel_range)
    return PreparedAttack(method, engine, params, stated | {"pixel_range": pixel_range})


def _known(method: str) -> Attack:
    if method not in ATTACKS:
        near = " or ".join(difflib.get_close_matches(method, ATTACKS, cutoff=0.4))
        hint = f"did you mean {near}?" if near else "`rlskit attacks` lists them"
        raise RequestError(f"`method` {method!r} is unknown; {hint}")
    return ATTACKS[method]


def _defaults(method: str, known: Attack, engine: str) -> dict[str, Any]:
    """Return the options that an engine's version takes, with their defaults."""
    if engine not in ENGINES:
        raise RequestError(f"`engine` {engine!r} is unknown; it is {' or '.join(ENGINES)}")
    if engine == "rlskit":
        return dict(known.defaults)
    theirs = known.of(engine)
    if theirs is None:
        raise RequestError(f"{engine} has no {method}; use `engine='rlskit'`")
    return {k: v for k, v in known.defaults.items() if k in theirs.options}
