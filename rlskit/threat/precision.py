"""Whether an attack's gradients may be in bfloat16: where that is faster, and finds as much.

What bfloat16 rounds away is the attacker's loss, so a number could flatter. Hence the attack itself
is run both ways on some of its images before it starts, and what the two reach is compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rlskit.attacks import ATTACKS
from rlskit.attacks.losses import objective, trail
from rlskit.defenses import defense_of
from rlskit.defenses.answers import mean_log_probabilities
from rlskit.errors import RequestError, UntrustedError, reason
from rlskit.models.banks import BankedModel
from rlskit.models.gradient_precision import gains_by_bf16
from rlskit.text import nearest
from rlskit.threat.reached import Reached, compared, weaker_sentence
from rlskit.threat.single import Threat

PRECISIONS = ("fp32", "bf16", "auto")

CHECKED = 64
"""Images that are attacked both ways."""

WORTH = 4 * CHECKED
"""With fewer images, the check costs more than bfloat16 saves."""


def check_known(precision: str) -> None:
    """Require one of `PRECISIONS`.

    Raises:
        RequestError: It is another.
    """
    if precision not in PRECISIONS:
        raise RequestError(
            f"`precision` {precision!r} is unknown; {nearest(precision, PRECISIONS)}"
        )


def check_precision(precision: str, threat: Threat, model: BankedModel, *, shuffled: bool) -> None:
    """Require a precision that can serve: bfloat16 cannot every attack and model.

    Raises:
        RequestError: It cannot, or is none of `PRECISIONS`.
    """
    check_known(precision)
    if precision == "auto" and shuffled:
        raise RequestError(
            "`precision='auto'` decides by how many images there are, and with `shuffle` more may "
            "come; give fp32 or bf16"
        )
    if precision == "bf16" and (obstacle := obstacle_to_bf16(threat, model)):
        raise RequestError(f"`precision='bf16'` {obstacle}; leave it out")


def obstacle_to_bf16(threat: Threat, model: BankedModel) -> str:
    """Return why bfloat16 cannot serve an attack on a model; empty where nothing speaks against."""
    if threat.attack.engine != "rlskit":
        return f"is for rlskit's own attacks, not for `engine={threat.attack.engine!r}`"
    if not ATTACKS[threat.attack.method].only_follows:
        serves = ", ".join(name for name, row in ATTACKS.items() if row.only_follows)
        return (
            f"serves the attacks that only follow their gradients ({serves}), and "
            f"{threat.attack.method} decides by the answers that come with them, or needs none"
        )
    if defense_of(model).acts:
        return (
            f"cannot serve `defense={model.card.defense!r}`, whose random numbers would be "
            "others in it"
        )
    kinds = {one.dtype for one in model.banks.parameters() if one.is_floating_point()}
    if kinds - {torch.float32}:
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"is for networks in float32, and this one computes in {names}"
    return ""


def settled(
    threat: Threat,
    precision: str,
    model: BankedModel,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    batch_size: int,
) -> Threat:
    """Return the threat in the precision that it runs in, with what a check of bfloat16 found.

    Nothing here depends on the clock, so that a run that goes on decides as it did before.

    Args:
        threat: As it was asked for.
        precision: One of `PRECISIONS`.
        model: The defended model.
        images: `[CHECKED, C, H, W]` in [0, 1] of those that will be attacked.
        labels: Theirs.
        seed: The user's.
        batch_size: Images per block.

    Raises:
        RequestError: The model cannot compute in bfloat16, which was asked for.
        UntrustedError: It was not shown to find as much, and was asked for; or non-finite logits
            or gradients.
    """
    possible = precision == "bf16" or (
        precision == "auto" and gains_by_bf16(model.device) and not obstacle_to_bf16(threat, model)
    )
    if not possible:
        return threat
    blocks = list(
        zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    )
    exact = _reached(threat, model, blocks, seed)
    fast = dataclasses.replace(threat, precision="bf16")
    try:
        rough = _reached(fast, model, blocks, seed)
    except Exception as error:  # whatever a network that sets its own types raises
        if precision == "auto":
            return threat
        if isinstance(error, RequestError | UntrustedError):
            raise
        raise RequestError(
            f"the model cannot compute in `precision='bf16'` ({reason(error)}); leave it out"
        ) from error
    check = compared(exact, rough)
    if precision == "bf16" and not check.as_strong:
        raise UntrustedError(weaker_sentence(check))
    return dataclasses.replace(fast if check.as_strong else threat, precision_check=check)


def _reached(
    threat: Threat, model: BankedModel, blocks: Sequence[tuple[Tensor, Tensor]], seed: int
) -> Reached:
    """Attack some images; look at them before and after in float32, on the attacker's own view."""
    found = [_reached_in(threat, model, *block, seed) for block in blocks]
    return Reached(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))


def _reached_in(
    threat: Threat, model: BankedModel, images: Tensor, labels: Tensor, seed: int
) -> Reached:
    crafted = threat.craft(model, images, labels, seed=seed, repeat=0)
    targets = crafted.columns.get("target")
    wanted, sign = (labels, 1) if targets is None else (targets, -1)
    ascended = objective(threat.attack.loss, targeted=targets is not None)
    judge = dataclasses.replace(threat, precision="fp32")
    losses, leads = [], []
    for points in (images, crafted.images):
        view = judge.seen(model, seed=seed, repeat=0)  # anew: both get the same fresh draws
        with torch.no_grad():
            answers = [view(points) for _ in range(threat.calls)]
        losses.append(ascended(answers, wanted))
        leads.append(sign * trail(mean_log_probabilities(torch.stack(answers)), wanted))
    return Reached(torch.stack(losses).double(), torch.stack(leads).double())
