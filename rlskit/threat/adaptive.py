"""The protocol `adaptive`: per image the worst of several attacks, cheapest first.

A randomised defense may withstand any one attack for reasons of its own: a view of too few draws, a
gradient that averages out, a loss that is flat. So an image counts as robust only if it withstands
transfer from every pure bank and from their mean, PGD on the expectation with two losses, ARC,
AutoAttack, random search, and, where draws are few, ascents from hundreds of starts. What an
earlier one surely broke is not attacked again; and where draws are few, AutoAttack and those
ascents are for the images only that short attacks break in a ball a little wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.arguments import argument, checked
from rlskit.attacks import prepare
from rlskit.defenses import defense_of, draws
from rlskit.defenses.answers import behind, finite_logits
from rlskit.errors import RequestError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.models.layout import in_layout, layout_of
from rlskit.progress import PART, Progress, no_progress
from rlskit.results.result import AttackFacts, PartFacts
from rlskit.seeds import Purpose
from rlskit.threat.meter import Meter
from rlskit.threat.parts import IN_DOUBT, Part, ascents, scouts, searches, transfers
from rlskit.threat.preflight import masked_gradients, preflight
from rlskit.threat.single import Crafted, Masked, masked_sentence
from rlskit.threat.view import protocol_of

PROTOCOL = "adaptive"

OPTIONS = ("eps", "norm", "steps", "restarts", "queries", "n_attacked", "surrogate")
"""What a command may say about it."""

JUDGES = 50
"""So many draws, the same for all parts, say what is broken; others score it in the end."""

SURE = 2.33
"""Where draws are many, an image is left alone once the lead of another class in the judges' mean
is so many standard errors of a mean of N draws: 99 of 100 such means then err."""

CLEAN = -2
"""Stands for no part at all: the defense errs on the image itself."""


@dataclass(frozen=True)
class Adaptive:
    """The attacks of the protocol on one model; it stands where a `Threat` stands.

    Every field but the parts' views is of what identifies a run.

    Attributes:
        parts: In the order in which they run, from the cheapest.
        norm: Of the budget.
        eps: The budget in [0, 1] units.
        n_attacked: Draws per gradient of the attacks on the expectation.
        stated: `eps` in the scale it was stated in, and that scale as `pixel_range`.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
        settings: The other options, and the digests of the surrogates, by name.
        answering: N, the draws whose mean the defense answers with; None where it has so few draws
            that all of them judge.
        early_exit: Whether images that are surely broken are left alone; and so, by the dear parts,
            those that are not in doubt.
        scouts: An image is in doubt where one of them breaks it, in a wider ball.
    """

    parts: tuple[Part, ...]
    norm: str
    eps: float
    n_attacked: int
    stated: dict[str, Any] = field(hash=False)
    settings: dict[str, Any] = field(hash=False)
    answering: int | None
    save: bool = False
    early_exit: bool = True
    scouts: tuple[Part, ...] = ()

    @property
    def protocol(self) -> str:
        """Its name in the results."""
        return PROTOCOL

    @property
    def label(self) -> str:
        """What it is called in the progress."""
        return f"the adaptive protocol {self.stated['eps']:.4g}"

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that tell what was done to the images."""
        parts = [
            PartFacts(name=part.name, method=part.attack.method, params=part.attack.params)
            for part in self.parts
        ]
        attack = AttackFacts(
            method=PROTOCOL,
            engine="rlskit",
            params={"norm": self.norm, "eps": self.eps, **self.settings},
            early_exit=self.early_exit,
            in_doubt=IN_DOUBT if self.scouts and self.early_exit else None,
            parts=tuple(parts),
            stated={"eps": self.stated["eps"]},
            pixel_range=self.stated["pixel_range"],
            view="mean-prob",
            compiled=False,
        )
        return {"attack": attack, "protocol": PROTOCOL, "n_attacked": self.n_attacked}

    def warnings(self, model: BankedModel) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: no other protocol sees more."""
        return ()

    def preflight(
        self, model: BankedModel, draw: nn.Module, images: Tensor, labels: Tensor, seed: int
    ) -> None:
        """Look at a few images through the view of every part.

        Raises:
            UntrustedError: Numbers would mean nothing.
        """
        for part in self.parts:
            view = part.view(seed=seed, repeat=0, image=None)
            preflight(model, draw, view, part.attack, images, labels)

    def masked(self, model: BankedModel, images: Tensor, labels: Tensor, seed: int) -> Masked:  # noqa: ARG002
        """Look for gradients of the margin that cannot be followed at some images."""
        part = next(part for part in self.parts if part.attack.params.get("loss") == "margin")
        view = part.view(seed=seed, repeat=0, image=None)
        at = masked_gradients(view, images, labels, "margin")
        advice = "only random search is left for them: attack what the model ends in (BPDA)"
        return Masked(at, masked_sentence(at, "margin", "PGD") + advice if at.any() else "")

    def craft(
        self,
        model: BankedModel,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int,
        repeat: int,
        image: int | None = None,
        progress: Progress = no_progress,
    ) -> Crafted:
        """Run the parts; keep of each image the version that the judges like least.

        The column `broken_by` holds the index of the part that it is from, `CLEAN` where it is the
        image itself, and -1 where the judges get it right.
        """
        judges = _judges(model, seed=seed, repeat=repeat, image=image)
        chosen, origin = images.clone(), torch.full_like(labels, CLEAN)
        lead, sure = self._judged(judges, images, labels)
        forwards, backwards = len(images) * len(judges), 0
        layout = layout_of(model)
        doubtful: Tensor | None = None

        def attacked(index: int, part: Part, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return what a part makes of some images, and what the judges say of that."""
            nonlocal forwards, backwards
            progress(PART + part.name, place, len(self.parts))
            meter = Meter(part.view(seed=seed, repeat=repeat, image=image), part.n_attacked)
            noise = seeds.generator(seed, Purpose.ADAPTIVE, repeat, index)
            clean = in_layout(images[rows], layout)
            further = {"start": in_layout(chosen[rows], layout)} if part.goes_on else {}
            changed = part.attack(meter, clean, labels[rows], generator=noise, **further)
            changed = changed.contiguous()
            forwards += meter.forwards + len(rows) * len(judges)
            backwards += meter.backwards
            return changed, *self._judged(judges, changed, labels[rows])

        def in_doubt() -> Tensor:
            """Return which images err, or do in the scouts' ball, bool `[B]`."""
            found = lead < 0
            for index, scout in enumerate(self.scouts, len(self.parts)):
                rows = (~found).nonzero().squeeze(1)
                if len(rows):
                    found[rows] = attacked(index, scout, rows)[1] < 0
            return found

        for place, part in enumerate(self.parts, 1):
            still = self._open(part, lead, sure)
            if part.dear and self.early_exit and still.any():
                doubtful = in_doubt() if doubtful is None else doubtful
                still &= doubtful
            rows = still.nonzero().squeeze(1)
            if not len(rows):
                continue
            changed, found, surely = attacked(place - 1, part, rows)
            worse = found < lead[rows]
            rows = rows[worse]
            chosen[rows], lead[rows], sure[rows] = changed[worse], found[worse], surely[worse]
            origin[rows] = place - 1
        broken_by = torch.where(lead < 0, origin, -1)
        return Crafted(chosen, forwards, backwards, {"broken_by": broken_by})

    def _open(self, part: Part, lead: Tensor, sure: Tensor) -> Tensor:
        """Say which images a part has still to attack, bool `[B]`."""
        if not self.early_exit:
            return torch.ones_like(sure)
        return lead >= 0 if part.last_resort else ~sure

    @torch.no_grad()
    def _judged(
        self, judges: list[nn.Module], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the label's lead in the judges' mean, and whether the defense surely errs, `[B]`.

        Where draws are many, the lead is in standard errors of a mean of N of them.
        """
        logits = finite_logits(judges, images)
        shares = behind(logits)
        rivals = shares.mean(0).scatter(1, labels[:, None], -torch.inf).argmax(1)
        rows = torch.arange(len(labels), device=labels.device)
        leads = shares[:, rows, labels] - shares[:, rows, rivals]
        if self.answering is None:  # the risk of a single draw counts, too
            lead = leads.mean(0)
            return lead, (lead < 0) & (logits.argmax(-1) != labels).all(0)
        lead = leads.mean(0) / (leads.std(0) / self.answering**0.5).clamp_min(1e-12)
        return lead, lead < -SURE


@checked()
def prepare_adaptive(
    model: BankedModel,
    *,
    eps: float | str,
    norm: str = "linf",
    steps: int = 50,
    restarts: int = 1,
    queries: int = 1000,
    n_attacked: int = 10,
    n_samples: int | None = None,
    pixel_range: str = "0:1",
    surrogate: Sequence[BankedModel] = (),
    save: bool = False,
    early_exit: bool = True,
) -> Adaptive:
    """Choose the attacks of the protocol for a model.

    A defense with few draws (an ensemble, or none) is attacked on all of them, and by the standard
    AutoAttack; one with many on n fresh draws at every step, and by AutoAttack's version `rand`.

    Args:
        model: The defended model.
        eps: The budget, in the scale `pixel_range`.
        norm: `linf` or `l2`.
        steps: Of PGD, each 2.5 eps / steps long.
        restarts: Of PGD on the expectation.
        queries: Of the random search on the mean; AutoAttack has its own 5,000.
        n_attacked: Draws at every step.
        n_samples: N, which says what is surely broken; by default the defense's own.
        pixel_range: A key of `rlskit.pixels.PIXEL_RANGES`.
        surrogate: Other models, as an undefended twin, whose adversarial images are tried, too: of
            each the mean of its banks is attacked.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
        early_exit: Whether broken images are left alone.

    Raises:
        RequestError: A value that cannot be.
    """
    protocol_of("eot", n_attacked)
    budget: dict[str, Any] = {"eps": eps, "pixel_range": pixel_range}
    method = "pgd" if norm == "linf" else "pgd-l2"
    stated = prepare(method, **budget, steps=steps).stated["eps"]
    pgd = {**budget, "steps": steps, "step_size": stated * min(2.5 / steps, 1)}
    single = prepare(method, **pgd)
    defense = defense_of(model)
    few = defense.distinct(model)
    several = few or n_attacked
    common = {**budget, "norm": norm}
    parts = transfers(model, single, common, surrogate)
    parts += ascents(model, method, pgd, restarts, several)
    parts += searches(model, common, queries, several)
    assert single.eps is not None
    settings = {
        "steps": steps, "restarts": restarts, "queries": queries,
        "surrogate": ",".join(map(checkpoint.digest_of, surrogate)) or None,
    }  # fmt: skip
    return Adaptive(
        tuple(parts), norm, single.eps, several, {"eps": stated, "pixel_range": pixel_range},
        settings, None if few else n_samples or defense.samples(model), save, early_exit,
        scouts(model, common),
    )  # fmt: skip


def adaptive_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the adaptive protocol among those that were given.

    Raises:
        RequestError: Another one was given, or there is no budget.
    """
    found = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(found.keys() - set(OPTIONS)):
        takes = ", ".join(map(argument, OPTIONS))
        raise RequestError(
            f"{argument(unknown[0])} is no option of the adaptive protocol: it takes {takes}"
        )
    if "eps" not in found:
        raise RequestError("the adaptive protocol needs a budget, such as `eps='8/255'`")
    return found


def _judges(model: BankedModel, *, seed: int, repeat: int, image: int | None) -> list[nn.Module]:
    """Return draws that no attack has seen: all of them where they are few."""
    count = defense_of(model).distinct(model) or JUDGES
    return draws(model, count, seed=seed, purpose=Purpose.JUDGE, repeat=repeat, image=image)
