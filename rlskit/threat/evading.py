"""An attacker of a defense that does not answer where its draws disagree, who knows that it does.

He wants a wrong answer on which the draws agree. So he ascends the mean of fresh draws' own losses
and lowers their disagreement, weighed against it in several ways; and he knows the threshold.
(The loss of their mean prediction, in the place of the mean of theirs, evades less: it is content
with half of the draws.) Without him abstaining is measured against attackers who do not care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.attacks import prepare
from rlskit.attacks.losses import Objective, objective
from rlskit.defenses import defense_of, draws
from rlskit.defenses.answers import finite_logits, joint_answer, mutual_information
from rlskit.documents import ASIDE
from rlskit.models.banks import BankedModel
from rlskit.models.layout import in_layout, layout_of
from rlskit.progress import PART, Progress, no_progress
from rlskit.results.result import AttackFacts, PartFacts
from rlskit.seeds import Purpose
from rlskit.threat.meter import Meter
from rlskit.threat.single import Crafted, Masked, Threat
from rlskit.threat.view import protocol_of

METHOD = "evading"

WEIGHTS = (0.0, 1.0, 2.0, 4.0)
"""Of the disagreement in nats, against the log odds of the loss; the best counts, per image. The
first is the attack on the expectation as it is."""

JUDGES = 5
"""So many groups of N draws say which of his images does best; others score it in the end."""


@dataclass(frozen=True)
class Evading:
    """The attacker, and the one who only transfers; it stands where a `Threat` stands.

    Attributes:
        transfer: PGD on one draw, whose images he tries, too.
        ascent: PGD on fresh draws, one at each call; on all of them where there are few.
        n_samples: N, the draws that answer.
        abstain: Share of clean images that the thresholds may cost.
        held_out: Digest of the images that they come from.
        held_out_images: Their number.
        thresholds: The largest disagreement in nats that is answered, one of each repeat.
        save: Whether the images are kept.
    """

    transfer: Threat
    ascent: Threat
    n_samples: int
    abstain: float
    held_out: str
    held_out_images: int = field(metadata=ASIDE)
    thresholds: tuple[float, ...] = field(metadata=ASIDE)  # the images and the model say them
    save: bool = False

    @property
    def label(self) -> str:
        """What it is called in the progress."""
        return f"an attacker who evades abstention {self.ascent.attack.stated['eps']:.4g}"

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that tell what was done to the images."""
        stated = {"eps": self.ascent.attack.stated["eps"]}
        attacks = {"transfer": self.transfer.attack} | {
            f"disagreement x {weight:g}": self.ascent.attack for weight in WEIGHTS
        }
        attack = AttackFacts(
            method=METHOD,
            engine="rlskit",
            params={"norm": self.ascent.attack.norm, "eps": self.ascent.attack.eps},
            parts=tuple(
                PartFacts(name=name, method=one.method, params=one.params)
                for name, one in attacks.items()
            ),
            stated=stated,
            pixel_range="0:1",
            view="mean-prob",
            compiled=False,
        )
        return {"attack": attack, "protocol": "eot", "n_attacked": self.ascent.n_attacked}

    def warnings(self, model: BankedModel) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: he sees fresh draws at every step."""
        return ()

    def preflight(
        self, model: BankedModel, draw: nn.Module, images: Tensor, labels: Tensor, seed: int
    ) -> None:
        """Look at a few images through both views.

        Raises:
            UntrustedError: Numbers would mean nothing.
        """
        for threat in (self.transfer, self.ascent):
            threat.preflight(model, draw, images, labels, seed)

    def masked(self, model: BankedModel, images: Tensor, labels: Tensor, seed: int) -> Masked:
        """Look for gradients that cannot be followed at some images."""
        return self.ascent.masked(model, images, labels, seed)

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
        """Return of each image the version that does best before draws which nobody scores.

        Best is what most groups of N draws answer wrongly; then, what most are wrong about, if
        they answered; then, what they agree on. The columns say what the defender makes of the
        images as they are (`clean`), of those that transfer, and of these (`robust`): its answer
        for `transfer`, and for all three its `disagreement`.
        """
        key: dict[str, Any] = {"seed": seed, "repeat": repeat, "image": image}
        moved = self.transfer.craft(model, images, labels, **key)
        forwards, backwards = moved.forwards, moved.backwards
        tried, clean = [images, moved.images], in_layout(images, layout_of(model))
        noise = seeds.generator(seed, Purpose.ATTACK, repeat)
        for index, weight in enumerate(WEIGHTS, 1):
            progress(f"{PART}ascent", index, len(WEIGHTS))
            meter = Meter(self.ascent.seen(model, **key), 1)
            changed = self.ascent.attack(
                meter, clean, labels, generator=noise, ascended=evading(weight)
            )
            tried.append(changed.contiguous())
            forwards, backwards = forwards + meter.forwards, backwards + meter.backwards
        judges = self._judges(model, key)
        merits = torch.stack([self._merit(judges, one, labels, repeat) for one in tried])
        rows = torch.arange(len(labels), device=labels.device)
        chosen = torch.stack(tried)[merits.argmax(0), rows]
        forwards += len(images) * self.n_samples * (len(judges) * len(tried) + 3)
        columns = self._columns(model, images, moved.images, chosen, key)
        return Crafted(chosen, forwards, backwards, columns)

    @torch.no_grad()
    def _merit(
        self, judges: list[list[nn.Module]], images: Tensor, labels: Tensor, repeat: int
    ) -> Tensor:
        """Return a number that orders versions of an image as `craft` says, `[B]`."""
        most = len(judges) + 1
        merit = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        for group in judges:
            answer, disagreement = answered(group, images)
            wrong = answer != labels
            broken = wrong & (disagreement <= self.thresholds[repeat])
            merit += 2 * (most * broken.double() + wrong.double())
            merit -= disagreement / math.log(max(2, self.n_samples)) / len(judges)  # in [0, 1]
        return merit

    def _judges(self, model: BankedModel, key: dict[str, Any]) -> list[list[nn.Module]]:
        """Return groups of N draws that no attack has seen; all of them where they are few."""
        groups = 1 if defense_of(model).distinct(model) == self.n_samples else JUDGES
        return [
            draws(model, self.n_samples, purpose=Purpose.JUDGE, first=self.n_samples * group, **key)
            for group in range(groups)
        ]

    @torch.no_grad()
    def _columns(
        self,
        model: BankedModel,
        images: Tensor,
        moved: Tensor,
        chosen: Tensor,
        key: dict[str, Any],
    ) -> dict[str, Tensor]:
        defenders = draws(model, self.n_samples, purpose=Purpose.DEFENDER, **key)
        columns = {}
        for kind, shown in (("clean", images), ("transfer", moved), ("robust", chosen)):
            answer, columns[f"{kind}_disagreement"] = answered(defenders, shown)
            if kind == "transfer":
                columns[kind] = answer[:, None]
        return columns


def prepare_evading(
    model: BankedModel,
    *,
    eps: float | str,
    norm: str,
    steps: int,
    n_attacked: int,
    n_samples: int,
    abstain: float,
    held_out: str,
    held_out_images: int,
    thresholds: tuple[float, ...],
) -> Evading:
    """Choose the attacks for a model.

    Args:
        model: The defended model.
        eps: The budget in [0, 1] units.
        norm: `linf` or `l2`.
        steps: Of PGD, each 2.5 eps / steps long.
        n_attacked: Draws at every step; all of them where they are few.
        n_samples: N, the draws that answer.
        abstain: Share of clean images that the thresholds may cost.
        held_out: Digest of the images that they come from.
        held_out_images: Their number.
        thresholds: The largest disagreement in nats that is answered, one of each repeat.

    Raises:
        RequestError: A value that cannot be.
    """
    protocol_of("eot", n_attacked)
    method = "pgd" if norm == "linf" else "pgd-l2"
    several = defense_of(model).distinct(model) or n_attacked
    whole = prepare(method, eps=eps, steps=steps)
    stride = whole.stated["eps"] * min(2.5 / steps, 1)
    pgd = {"eps": eps, "steps": steps, "step_size": stride}
    ascent = prepare(method, **pgd, eot_samples=several)
    return Evading(
        Threat(prepare(method, **pgd), "transfer", 1, "mean-prob"),
        Threat(ascent, "eot", several, "mean-prob", risk="gibbs"),
        n_samples,
        abstain,
        held_out,
        held_out_images,
        thresholds,
    )


def evading(weight: float) -> Objective:
    """Return the mean of the calls' losses, less so much of their disagreement."""
    ascended = objective("ce")

    def value(answers: list[Tensor], labels: Tensor) -> Tensor:
        return ascended(answers, labels) - weight * mutual_information(torch.stack(answers))

    return value


def answered(defenders: list[nn.Module], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the defenders answer together, long `[B]`, and their disagreement in nats, `[B]`.

    Raises:
        UntrustedError: A draw's logits are not finite.
    """
    logits = finite_logits(defenders, images)
    return joint_answer(logits), mutual_information(logits)
