"""Whether an attack reaches as much with gradients in bfloat16 as in float32.

The question is not whether it surely reaches less: on few images, little is sure. Asked is that it
surely does not, but for a small share of what the attack reaches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from rlskit.results.result import PrecisionCheck, Rise
from rlskit.stats import mean_at_least

SHORTFALL = 0.01
"""Share of what the attack adds to the loss that bfloat16 may miss, at the worst of its bound."""

LEFT = 1
"""So many more of the images may withstand the attack in bfloat16: one does with another seed."""


class Reached(NamedTuple):
    """What an attack reached, before it and after, `[2, B]`.

    Attributes:
        loss: What it ascends.
        lead: By how much the answer that it is after leads the best other one.
    """

    loss: Tensor
    lead: Tensor


def compared(exact: Reached, rough: Reached) -> PrecisionCheck:
    """Compare what an attack reached on the same images in float32 and in bfloat16."""
    loss = _rise(exact.loss, rough.loss)
    # Where an image is fooled, further on does not matter: this is what decides the accuracy.
    lead = _rise(exact.lead.clamp_max(0), rough.lead.clamp_max(0))
    fp32, bf16 = int((exact.lead[1] <= 0).sum()), int((rough.lead[1] <= 0).sum())
    as_high = all(_shortfall(one) <= SHORTFALL * one.gain for one in (loss, lead))
    return PrecisionCheck(
        images=exact.loss.shape[1],
        left={"fp32": fp32, "bf16": bf16},
        loss=loss,
        lead=lead,
        as_strong=as_high and bf16 <= fp32 + LEFT,
    )


def _rise(exact: Tensor, rough: Tensor) -> Rise:
    """Compare two rises from the same start, `[2, B]` each."""
    shift = rough[1] - exact[1]
    return Rise(
        gain=float((exact[1] - exact[0]).mean()),
        shift=float(shift.mean()),
        at_least=mean_at_least(shift.tolist()),
    )


def _shortfall(rise: Rise) -> float:
    """Return how much less than float32 bfloat16 may have reached."""
    return math.inf if rise.at_least is None else -rise.at_least


def weaker_sentence(check: PrecisionCheck) -> str:
    """Return the sentence on an attack in bfloat16 that may find less."""
    short = [_shortfall(one) / one.gain for one in (check.loss, check.lead) if one.gain > 0]
    return (
        f"gradients in bf16 were not shown to find as much as in fp32: of "
        f"{check.images} images they left {check.left['bf16']} and not {check.left['fp32']}, and "
        f"may have missed {max(short, default=1):.1%} of what the attack reaches, where "
        f"{SHORTFALL:.0%} is allowed, so the result would flatter; leave `precision='bf16'` out"
    )
