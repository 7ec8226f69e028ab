"""What is done to the images before they are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.attacks import ATTACKS, PreparedAttack
from rlskit.defenses import defense_of
from rlskit.documents import ASIDE
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.layout import in_layout, layout_of
from rlskit.progress import Progress, no_progress
from rlskit.results.result import AttackFacts, PrecisionCheck
from rlskit.seeds import Purpose
from rlskit.text import nearest
from rlskit.threat.meter import Meter
from rlskit.threat.preflight import ASTRAY, masked_gradients, preflight, truth_of_gradients
from rlskit.threat.view import attackers_view

RISKS = ("mean", "gibbs")
"""Of which answer the attacker ascends the loss: the draws' mean prediction, or each draw's own."""


def check_risk(risk: str) -> None:
    """Require one of `RISKS`.

    Raises:
        RequestError: It is another.
    """
    if risk not in RISKS:
        raise RequestError(f"`risk` {risk!r} is unknown; {nearest(risk, RISKS)}")


def may_rest(
    model: BankedModel, attack: PreparedAttack, protocol: str, n_attacked: int, *, save: bool
) -> bool:
    """Say whether an image that is surely fooled may be left alone, as nothing can change for it.

    That is where the one draw that is attacked is all that answers. Of several, or of others, more
    are fooled by going on, so that stopping would flatter them; and the image survives rounding
    better, and fools other models, where it is kept.

    Args:
        model: The defended model.
        attack: What it is attacked with.
        protocol: One of `rlskit.threat.view.PROTOCOLS`.
        n_attacked: Draws in the attacker's view.
        save: Whether the images are kept.
    """
    known = protocol == "known" or defense_of(model).distinct(model) == 1
    can = attack.engine == "rlskit" and ATTACKS[attack.method].rests
    return can and known and n_attacked == 1 and not save


@dataclass(frozen=True)
class Crafted:
    """What an attack made of a block, and what it cost.

    Attributes:
        images: `[B, C, H, W]`.
        forwards: Images x draws.
        backwards: Likewise.
        columns: More to be kept of each image, by name; `[B]` each.
    """

    images: Tensor
    forwards: int
    backwards: int
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Masked:
    """Where an attack had no gradient to follow.

    Attributes:
        lost: Of the images that were looked at, those that it had still to move and where not even
            the margin has a gradient, bool `[n]`: the model masks it.
        sentence: For people; empty where the attack had a gradient at all of them.
    """

    lost: Tensor
    sentence: str


def masked_sentence(at: Tensor, loss: str, what: str) -> str:
    """Return the sentence on masked gradients, which ends where advice may follow."""
    return (
        f"MASKED GRADIENTS: at {int(at.sum())} of {len(at)} images looked at, the gradient of the "
        f"{loss} loss is zero, or less than rounding leaves, although {what} has still to move "
        "them, so it may leave them where they are and they count as robust; "
    )


@dataclass(frozen=True)
class Threat:
    """An attack and the view it is computed on; every field is of what identifies a run.

    Attributes:
        attack: The attack, its options checked.
        protocol: One of `rlskit.threat.view.PROTOCOLS`.
        n_attacked: Draws in the attacker's view.
        view: One of `rlskit.threat.view.VIEWS`.
        compiled: Whether the draws in the view are compiled.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
        risk: One of `RISKS`: the loss of the draws' mean prediction is ascended, or the mean of
            the single draws' losses.
        precision: Of the gradients, `fp32` or `bf16`; all else is in the model's own.
        precision_check: What `rlskit.threat.precision.settled` found of `bf16`.
        rest: Whether the attack leaves an image alone once that is surely fooled; see `may_rest`.
    """

    attack: PreparedAttack
    protocol: str
    n_attacked: int
    view: str
    compiled: bool = False
    save: bool = False
    risk: str = "mean"
    precision: str = "fp32"
    precision_check: PrecisionCheck | None = field(default=None, metadata=ASIDE)
    rest: bool = False

    @property
    def label(self) -> str:
        """The method and its budget in the scale it was stated in, for people."""
        eps = self.attack.stated.get("eps")
        return self.attack.method if eps is None else f"{self.attack.method} {eps:.4g}"

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that tell what was done to the images."""
        stated = dict(self.attack.stated)
        pixel_range = stated.pop("pixel_range")
        attack = AttackFacts(
            method=self.attack.method,
            engine=self.attack.engine,
            params=self.attack.params,
            stated=stated,
            pixel_range=pixel_range,
            view=self.view,
            risk=self.risk,
            compiled=self.compiled,
            precision=self.precision,
            precision_check=self.precision_check,
            early_exit=self.rest or None,
        )
        return {"attack": attack, "protocol": self.protocol, "n_attacked": self.n_attacked}

    def warnings(self, model: BankedModel) -> tuple[str, ...]:
        """Return what must be known of the attack: that its way is short, that it sees little."""
        return (*self._short_way(), *self._sees_little(model))

    def _short_way(self) -> Iterator[str]:
        """Yield a sentence where all steps together are shorter than the budget."""
        stated = self.attack.stated
        if "step_size" not in stated:
            return
        steps, stride, eps = (stated[name] for name in ("steps", "step_size", "eps"))
        if steps * stride < eps * (1 - 1e-6):
            yield (
                f"SHORT WAY: {steps} x {stride:.3g} (`steps` and `step_size`) is less than the "
                f"budget of {eps:.3g}, so images may count as robust that all of it would break; "
                "give more of either."
            )

    def _sees_little(self, model: BankedModel) -> Iterator[str]:
        """Yield a sentence where the attacker could see more than this view of the defense."""
        known = defense_of(model).distinct(model)
        if self.protocol in ("eot", "known") or (known is not None and self.n_attacked >= known):
            return
        stated = self.attack.stated
        eps = f"{stated['eps']:.4g}" if "eps" in stated else "EPS"
        again = f"rlskit.load({str(model.path)!r})" if model.path else "model"
        again += f", eps={eps}"
        if self.attack.norm not in (None, "linf"):
            again += f", norm={self.attack.norm!r}"
        if stated["pixel_range"] != "0:1":
            again += f", pixel_range={stated['pixel_range']!r}"
        yield (
            f"OPTIMISTIC: the attacker of this {model.card.defense} saw {self.n_attacked} of its "
            f"draws and could see more; `rlskit.attack_adaptively({again})` gives the honest "
            "number."
        )

    def preflight(
        self, model: BankedModel, draw: nn.Module, images: Tensor, labels: Tensor, seed: int
    ) -> None:
        """Look at a few images before any number is computed.

        Raises:
            UntrustedError: Numbers would mean nothing.
        """
        preflight(model, draw, self.seen(model, seed=seed, repeat=0), self._attack, images, labels)

    def masked(self, model: BankedModel, images: Tensor, labels: Tensor, seed: int) -> Masked:
        """Look for gradients that cannot be followed at some images."""
        if ATTACKS[self.attack.method].needs != "gradients":
            return Masked(torch.zeros_like(labels, dtype=torch.bool), "")

        def stuck(loss: str) -> Tensor:
            view = self.seen(model, seed=seed, repeat=0)
            noise = seeds.generator(seed, Purpose.ATTACK, 0)
            targets = self.attack.targets(view, images, labels, noise)
            wanted = labels if targets is None else targets
            return masked_gradients(view, images, wanted, loss, targeted=targets is not None)

        loss, own, lost = self.attack.loss, stuck(self.attack.loss), stuck("margin")
        if not (at := own | lost).any():
            return Masked(lost, self._astray(model, images, labels, seed))
        advice = self._instead(margin_helps=bool((own & ~lost).any()))
        losses = f"{loss} or the margin" if (lost & ~own).any() else loss
        return Masked(lost, masked_sentence(at, losses, self.attack.method) + advice)

    def _astray(self, model: BankedModel, images: Tensor, labels: Tensor, seed: int) -> str:
        """Return a sentence where gradients are there, but are not those of what is computed."""
        seen = partial(dataclasses.replace(self, compiled=False).seen, model, seed=seed, repeat=0)
        truth = truth_of_gradients(seen, images, labels, model.reading.dtype)
        if truth is None or truth > ASTRAY:
            return ""
        return (
            "MISLEADING GRADIENTS: how small changes of the images change the margin is not what "
            f"its gradient tells (their correlation is {truth:.2f}, and near 1 of a gradient that "
            f"is the model's own), so {self.attack.method} may go astray and leave images that "
            f"count as robust; {self._instead(margin_helps=True, loss=False)}"
        )

    def _instead(self, *, margin_helps: bool, loss: bool = True) -> str:
        """Return what to try where the attack's gradients cannot be followed, and it can."""
        method, norm = self.attack.method, self.attack.norm
        in_norm = "norm='l2'" if norm == "l2" else ""
        found = []
        if margin_helps and loss and self.attack.engine != "rlskit":
            found.append("`engine='rlskit'`")
        elif margin_helps and loss and "loss" in ATTACKS[method].defaults:
            found.append("`loss='margin'`")
        if margin_helps:
            found.append(f"`rlskit.attack_adaptively({in_norm})`")
        square = ", ".join(filter(None, ("method='square'", in_norm)))
        found.append(f"`{square}`, which needs none")
        return f"try {' or '.join(found)}"

    def seen(
        self, model: BankedModel, *, seed: int, repeat: int, image: int | None = None
    ) -> nn.Module:
        """Return the attacker's view."""
        return attackers_view(
            model, self.protocol, self._per_call, seed=seed, repeat=repeat, view=self.view,
            folded=self._folded, compiled=self.compiled, bf16=self.precision == "bf16", image=image,
        )  # fmt: skip

    def craft(
        self,
        model: BankedModel,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int,
        repeat: int,
        image: int | None = None,
        progress: Progress = no_progress,  # noqa: ARG002
    ) -> Crafted:
        """Attack some images.

        Args:
            model: The defended model.
            images: `[B, C, H, W]` in [0, 1].
            labels: `[B]`.
            seed: The user's seed.
            repeat: Index of the repeat.
            image: The index of the one image, where each has draws of its own.
            progress: Told nothing: this attack has no parts.

        Raises:
            UntrustedError: Non-finite logits or gradients, or a broken budget.
        """
        meter = Meter(self.seen(model, seed=seed, repeat=repeat, image=image), self._per_call)
        noise = seeds.generator(seed, Purpose.ATTACK, repeat)
        clean = in_layout(images, layout_of(model)) if self._folded else images.contiguous()
        targets = self._attack.targets(meter, clean, labels, noise)
        more = {"rest": True} if self.rest else {}
        changed = self._attack(meter, clean, labels, generator=noise, targets=targets, **more)
        changed = changed.contiguous()
        columns = {} if targets is None else {"target": targets}
        return Crafted(changed, meter.forwards, meter.backwards, columns)

    @property
    def calls(self) -> int:
        """Calls of the view that answer together, as in a step of the attack."""
        return self.n_attacked // self._per_call

    @property
    def _per_call(self) -> int:
        """Draws that answer each call of the view."""
        return 1 if self.risk == "gibbs" else self.n_attacked

    @property
    def _attack(self) -> PreparedAttack:
        """The attack that takes as many calls a step as it must see draws."""
        if self.risk == "mean":
            return self.attack
        params = {**self.attack.params, "eot_samples": self.n_attacked}
        return dataclasses.replace(self.attack, params=params)

    @property
    def _folded(self) -> bool:
        """Whether the draws in the view are made ready for many gradients."""
        return self.attack.engine == "rlskit"
