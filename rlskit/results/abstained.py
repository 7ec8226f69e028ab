"""From the columns of a run under an evading attacker to what abstaining is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rlskit.results.journal import Journal
from rlskit.results.result import Abstained, AbstentionFacts, Measure
from rlskit.stats import accuracy, auroc, auroc_interval, spread

SHOWN = {"clean": "clean", "transfer": "transfer", "evading": "robust"}
"""Kind of images in the results -> its columns in a run."""


def abstention(
    journal: Journal, *, false_alarms: float, held_out: int, thresholds: Sequence[float]
) -> AbstentionFacts:
    """Return what abstaining is worth on clean images and under both attackers.

    Args:
        journal: Of a run under `rlskit.threat.evading.Evading`.
        false_alarms: Share of clean images that it may cost.
        held_out: Images that the thresholds come from.
        thresholds: One of each repeat: what is above it is not answered.
    """
    repeats = range(len(thresholds))
    seen = {
        name: [_seen(journal, columns, repeat, thresholds[repeat]) for repeat in repeats]
        for name, columns in SHOWN.items()
    }
    return AbstentionFacts(
        false_alarms=false_alarms,
        held_out=held_out,
        thresholds=tuple(thresholds),
        images={name: _abstained(found, seen["clean"]) for name, found in seen.items()},
    )


class _Seen(NamedTuple):
    """Images of one kind in one repeat, `[n]` each.

    Attributes:
        right: Whether the answer is, or would be, the label.
        answered: Whether there is one.
        disagreement: Of the draws.
    """

    right: Tensor
    answered: Tensor
    disagreement: Tensor


def _seen(journal: Journal, kind: str, repeat: int, threshold: float) -> _Seen:
    disagreement = journal.column(f"{kind}_disagreement", repeat)
    right = journal.column(kind, repeat)[:, -1] == journal.column("label", repeat)
    return _Seen(right, disagreement <= threshold, disagreement)


def _abstained(found: Sequence[_Seen], clean: Sequence[_Seen]) -> Abstained:
    """Summarise images of one kind over the repeats, beside the same images as they are."""
    n, least = len(found[0].right), min(int(one.answered.sum()) for one in found)
    useful = [
        _share(before.right & before.answered & (one.right | ~one.answered))
        for one, before in zip(found, clean, strict=True)
    ]
    answered = [_share(one.right[one.answered]) for one in found] if least else []
    return Abstained(
        abstained=accuracy([_share(~one.answered) for one in found], n),
        without=accuracy([_share(one.right) for one in found], n),
        answered=accuracy(answered, least) if answered else None,
        useful=accuracy(useful, n),
        auroc=_auroc(found, clean),
    )


def _auroc(found: Sequence[_Seen], clean: Sequence[_Seen]) -> Measure:
    """Return the mean AUROC, with the interval of the smallest numbers that a repeat had."""
    wrong = [one.disagreement[~one.right].tolist() for one in found]
    right = [one.disagreement[one.right].tolist() for one in clean]
    over = spread([auroc(*pair) for pair in zip(wrong, right, strict=True)])
    if over.mean is None:
        return Measure(mean=None, std=None, ci95=None)
    least = min(map(len, wrong)), min(map(len, right))
    return Measure(mean=over.mean, std=over.std, ci95=auroc_interval(over.mean, *least))


def _share(rows: Tensor) -> float:
    return int(rows.sum()) / len(rows)
