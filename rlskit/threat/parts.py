"""The attacks that the adaptive protocol is made of, and what each of them sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rlskit.attacks import PreparedAttack, prepare
from rlskit.defenses import defense_of
from rlskit.documents import ASIDE
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.folding import InPieces, ready_for_attack
from rlskit.models.layout import layout_of
from rlskit.threat.view import DrawsView, attackers_view

ARC_DRAWS = 12
"""Fixed draws that ARC attacks: Dbouk & Shanbhag 2022 attack all members, RLS has M^L."""

IN_DOUBT = 1.2
"""An image is in doubt where a scout fools the defense within so many budgets."""

SHARE = 5
"""Of AutoAttack's queries, a scout's search has one in so many."""

Views = Callable[..., nn.Module]


@dataclass(frozen=True)
class Part:
    """One attack of the protocol.

    Attributes:
        name: For people, and in the results.
        attack: The attack, its options checked.
        view: (seed=, repeat=, image=) -> what it is computed on.
        n_attacked: Draws that answer each call of the view.
        goes_on: Whether it starts from the version of each image that is the worst so far.
        last_resort: Whether it is for those images only that the judges' mean still gets right.
        dear: Whether it is for images in doubt only.
    """

    name: str
    attack: PreparedAttack
    view: Views = field(metadata=ASIDE)  # the name and the model say what it is
    n_attacked: int
    goes_on: bool = False
    last_resort: bool = False
    dear: bool = False


def transfers(
    model: BankedModel,
    attack: PreparedAttack,
    common: dict[str, Any],
    surrogates: Sequence[BankedModel],
) -> list[Part]:
    """Return attacks on networks that any attacker can build from the weights, or brings along.

    The banks are the members of an ensemble without the rule that makes one answer of theirs.
    """
    banks = [_bank_view(model, bank) for bank in range(model.num_banks)]
    parts = []
    if len(banks) > 1 or defense_of(model).perturb is not None:
        parts += [Part(f"bank {m}", attack, view, 1) for m, view in enumerate(banks)]
    if len(banks) > 1:
        together = _mean_view(banks)
        parts.append(Part("mean of the banks", attack, together, len(banks)))
        parts.append(Part("mora", prepare("mora", **common), together, len(banks)))
    elif not defense_of(model).distinct(model):  # the mean of many may be harder to climb
        parts.append(Part("one draw", attack, _view(model, "transfer", 1), 1))
    for number, surrogate in enumerate(surrogates):
        count = _fitting(surrogate, model).num_banks
        view = _mean_view([_bank_view(surrogate, bank) for bank in range(count)])
        parts.append(Part(f"surrogate {number}", attack, view, count))
    return parts


def ascents(
    model: BankedModel, method: str, options: dict[str, Any], restarts: int, several: int
) -> list[Part]:
    """Return PGD on the expectation with two losses, and once more from the worst point so far.

    The last is what breaks surely the images that the others broke for some of the draws only.
    """
    view = expectation(model, several)
    parts = []
    for loss in ("ce", "margin"):
        attack = prepare(method, **options, loss=loss, restarts=restarts)
        parts.append(Part(f"pgd {loss}", attack, view, several))
    further = prepare(method, **options, loss="margin")
    return [*parts, Part("pgd margin, further", further, view, several, goes_on=True)]


def searches(model: BankedModel, common: dict[str, Any], queries: int, several: int) -> list[Part]:
    """Return ARC on fixed draws, AutoAttack, and what is for images that nothing else broke.

    Where draws are few, that is a search from many starts. (Fresh draws would hide which of them is
    the better.) It and the standard AutoAttack are for images in doubt. Where draws are many, that
    is AutoAttack itself and Square on the mean of some: they cost more than all others together and
    go on until their own few draws are fooled.
    """
    few = defense_of(model).distinct(model)
    members = few or ARC_DRAWS
    parts = []
    if members > 1:
        view = _view(model, "multi", members)
        parts.append(Part("arc", prepare("arc", **common), view, members))
    if few:  # the standard AutoAttack has a Square of its own
        auto = prepare("autoattack", **common, version="standard")
        view = expectation(model, few)
        return [
            *parts,
            Part("autoattack standard", auto, view, few, dear=True),
            Part("inward", prepare("inward", **common), view, few, last_resort=True, dear=True),
        ]
    auto = prepare("autoattack", **common, version="rand")  # which takes 20 calls a step
    square = prepare("square", **common, steps=queries)
    view = _view(model, "multi", several)
    return [
        *parts,
        Part("autoattack rand", auto, expectation(model, 1), 1, last_resort=True),
        Part("square", square, view, several, last_resort=True),
    ]


def scouts(model: BankedModel, common: dict[str, Any]) -> tuple[Part, ...]:
    """Return what tells images in doubt from the others: short attacks in a ball `IN_DOUBT` wide.

    One climbs towards each near class; one only searches, so that no image passes for safe because
    its gradients are masked. None where draws are many: what AutoAttack's version `rand` and Square
    find there beyond a short attack is not known well enough.
    """
    few = defense_of(model).distinct(model)
    if not few:
        return ()
    climb = prepare("inward", **common, restarts=1)
    queries = prepare("autoattack", **common).params["queries"]
    search = prepare("square", **common, steps=queries // SHARE)
    view = expectation(model, few)
    return (
        Part("scout's climb", _wide(climb), view, few),
        Part("scout's search", _wide(search), view, few),
    )


def _wide(attack: PreparedAttack) -> PreparedAttack:
    return replace(attack, params={**attack.params, "eps": IN_DOUBT * attack.params["eps"]})


def expectation(model: BankedModel, count: int) -> Views:
    """Return the view of all draws where they are few, else of so many fresh ones at each call."""
    if not defense_of(model).distinct(model):
        return _view(model, "eot", count)
    return _view(model, "transfer" if count == 1 else "multi", count)


def _view(model: BankedModel, protocol: str, count: int) -> Views:
    return lambda *, seed, repeat, image: attackers_view(
        model, protocol, count, seed=seed, repeat=repeat, image=image
    )


def _bank_view(model: BankedModel, bank: int) -> Views:
    """Return a view of one whole bank, without what the defense does to it."""

    def view(**_: Any) -> nn.Module:
        draw = model.sampled(torch.full((model.num_layers,), bank))
        return InPieces(ready_for_attack(model, [draw])[0], layout_of(model))

    return view


def _mean_view(views: list[Views]) -> Views:
    return lambda **key: DrawsView([view(**key) for view in views])


def _fitting(surrogate: BankedModel, model: BankedModel) -> BankedModel:
    card = surrogate.card
    if (card.pixels.shape, card.classes) != (model.card.pixels.shape, model.card.classes):
        raise RequestError(
            f"the surrogate takes images of {list(card.pixels.shape)} and knows "
            f"{card.classes} classes, the model {list(model.card.pixels.shape)} and "
            f"{model.card.classes}; convert it for the same data"
        )
    return surrogate
