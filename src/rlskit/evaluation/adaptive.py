"""The protocol `adaptive`: per image the worst of several attacks, cheapest first.

A randomised defense may withstand any one attack for reasons of its own: a view of too few draws, a
gradient that averages out, a loss that is flat. So an image counts as robust only if it withstands
transfer from every pure bank and from their mean, PGD on the expectation with two losses, ARC,
random search, and AutoAttack. What an earlier one broke is not attacked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import checkpoint, seeds
from rlskit.attacks import prepare
from rlskit.defenses import defense_of, draws
from rlskit.evaluation.logits import finite_logits
from rlskit.evaluation.parts import Part, expectation, searches, transfers
from rlskit.evaluation.threats import Crafted, in_layout
from rlskit.models.banks import BankedModel
from rlskit.preflight import preflight
from rlskit.threat import Meter, mean_log_probabilities, protocol_of

PROTOCOL = "adaptive"

JUDGES = 50
"""So many draws, the same for all parts, say what is broken; others score it in the end."""

SURE_RIGHT, SURE_MARGIN = 0.1, -math.log(2)
"""Where draws are many, an image is left alone if no more of the judges are right and their mean
gives another class twice the label's probability: of ten other draws the mean then errs, too."""

CLEAN = -2
"""Stands for no part at all: the defense errs on the image itself."""


@dataclass(frozen=True)
class Adaptive:
    """The attacks of the protocol on one model; it stands where a `Threat` stands.

    Attributes:
        parts: In the order in which they run, from the cheapest.
        norm: Of the budget.
        eps: The budget in [0, 1] units.
        n_attacked: Draws per gradient of the attacks on the expectation.
        stated: `eps` in the scale it was stated in, and that scale as `pixel_range`.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
        settings: The other options, and the digest of the twin, by name.
        judged_by_all: Whether the defense has so few draws that all of them judge.
        early_exit: Whether images that are surely broken are left alone.
    """

    parts: tuple[Part, ...]
    norm: str
    eps: float
    n_attacked: int
    stated: dict[str, Any] = field(hash=False)
    settings: dict[str, Any] = field(hash=False)
    judged_by_all: bool
    save: bool = False
    early_exit: bool = True

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
            {"name": part.name, "method": part.attack.method, "params": dict(part.attack.params)}
            for part in self.parts
        ]
        attack = {
            "method": PROTOCOL,
            "engine": "rlskit",
            "params": {"norm": self.norm, "eps": self.eps, **self.settings},
            "early_exit": self.early_exit,
            "parts": parts,
            "stated": {"eps": self.stated["eps"]},
            "pixel_range": self.stated["pixel_range"],
            "view": "mean-prob",
            "compiled": False,
        }
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

    def craft(
        self,
        model: BankedModel,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int,
        repeat: int,
        image: int | None = None,
    ) -> Crafted:
        """Run the parts; keep of each image the version that the judges like least.

        The column `broken_by` holds the index of the part that it is from, `CLEAN` where it is the
        image itself, and -1 where the judges get it right.
        """
        judges = _judges(model, seed=seed, repeat=repeat, image=image)
        chosen, origin = images.clone(), torch.full_like(labels, CLEAN)
        least, right = _judged(judges, images, labels)
        forwards, backwards = len(images) * len(judges), 0
        left = torch.arange(len(images), device=images.device)
        left = left[~self._surely_broken(least, right)] if self.early_exit else left
        for index, part in enumerate(self.parts):
            if not len(left):
                break
            view = part.view(seed=seed, repeat=repeat, image=image)
            meter = Meter(view, part.n_attacked)
            noise = seeds.generator(seed, "adaptive", repeat, index)
            clean = in_layout(images[left], channels_last=True)
            changed = part.attack(meter, clean, labels[left], generator=noise).contiguous()
            margins, right = _judged(judges, changed, labels[left])
            forwards += meter.forwards + len(left) * len(judges)
            backwards += meter.backwards
            worse = margins < least[left]
            chosen[left[worse]], least[left[worse]] = changed[worse], margins[worse]
            origin[left[worse]] = index
            if self.early_exit:
                left = left[~self._surely_broken(margins, right)]
        broken_by = torch.where(least < 0, origin, -1)
        return Crafted(chosen, forwards, backwards, {"broken_by": broken_by})

    def _surely_broken(self, margins: Tensor, right: Tensor) -> Tensor:
        if self.judged_by_all:
            return (margins < 0) & (right == 0)  # the risk of a single draw counts, too
        return (margins < SURE_MARGIN) & (right <= SURE_RIGHT)


def prepare_adaptive(
    model: BankedModel,
    *,
    eps: float | str,
    norm: str = "linf",
    steps: int = 50,
    restarts: int = 1,
    queries: int = 1000,
    n_attacked: int = 10,
    pixel_range: str = "0:1",
    twin: BankedModel | None = None,
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
        pixel_range: A key of `rlskit.pixels.PIXEL_RANGES`.
        twin: An undefended model whose adversarial images are tried, too.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
        early_exit: Whether broken images are left alone.

    Raises:
        RequestError: A value that cannot be.
    """
    protocol_of("eot", n_attacked)
    budget: dict[str, Any] = {"eps": eps, "pixel_range": pixel_range}
    method = "pgd" if norm == "linf" else "pgd-l2"
    stated = prepare(method, **budget).stated["eps"]
    pgd = {**budget, "steps": steps, "step_size": 2.5 * stated / steps}
    single = prepare(method, **pgd)
    few = defense_of(model).distinct(model)
    several = few or n_attacked
    parts = transfers(model, single, twin)
    for loss in ("ce", "margin"):
        attack = prepare(method, **pgd, loss=loss, restarts=restarts)
        parts.append(Part(f"pgd {loss}", attack, expectation(model, several), several))
    parts += searches(model, {**budget, "norm": norm}, queries, several)
    assert single.eps is not None
    settings = {
        "steps": steps, "restarts": restarts, "queries": queries,
        "twin": None if twin is None else checkpoint.fingerprint(checkpoint.stored_tensors(twin)),
    }  # fmt: skip
    return Adaptive(
        tuple(parts), norm, single.eps, several, {"eps": stated, "pixel_range": pixel_range},
        settings, few is not None, save, early_exit,
    )  # fmt: skip


def _judges(model: BankedModel, *, seed: int, repeat: int, image: int | None) -> list[nn.Module]:
    """Return draws that no attack has seen: all of them where they are few."""
    count = defense_of(model).distinct(model) or JUDGES
    return draws(model, count, seed=seed, purpose="judge", repeat=repeat, image=image)


@torch.no_grad()
def _judged(judges: list[nn.Module], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins of the mean's log-probabilities, and the share of judges that are right.

    Both are `[B]`; a margin is below 0 where the mean errs.
    """
    logits = finite_logits(judges, images)
    mean = mean_log_probabilities(logits)
    of_label = mean.gather(1, labels[:, None])[:, 0]
    others = mean.scatter(1, labels[:, None], -torch.inf).amax(1)
    return of_label - others, (logits.argmax(-1) == labels).float().mean(0)
