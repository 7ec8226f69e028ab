"""From the columns of a run under an evading attacker to what abstaining is worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    clean = [_answers(journal, "clean", repeat, thresholds[repeat]) for repeat in repeats]
    shown = {}
    for name, columns in SHOWN.items():
        found = [_answers(journal, columns, repeat, thresholds[repeat]) for repeat in repeats]
        shown[name] = _abstained(found, clean, attacked=name != "clean")
    return AbstentionFacts(
        false_alarms=false_alarms, held_out=held_out, thresholds=tuple(thresholds), images=shown
    )


def _answers(
    journal: Journal, kind: str, repeat: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which images are right and which are answered, bool `[n]`, and the disagreement."""
    disagreement = journal.column(f"{kind}_disagreement", repeat)
    right = journal.column(kind, repeat)[:, -1] == journal.column("label", repeat)
    return right, disagreement <= threshold, disagreement


def _abstained(
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    clean: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    attacked: bool,
) -> Abstained:
    n = len(found[0][0])
    answered = [int(kept.sum()) for _, kept, _ in found]
    useful, areas, sizes = [], [], []
    for (right, kept, doubt), (right_clean, kept_clean, doubt_clean) in zip(
        found, clean, strict=True
    ):
        withstood = right | ~kept if attacked else torch.ones_like(right)
        useful.append(_share(right_clean & kept_clean & withstood))
        sizes.append((int((~right).sum()), int(right_clean.sum())))
        areas.append(auroc(doubt[~right].tolist(), doubt_clean[right_clean].tolist()))
    return Abstained(
        abstained=accuracy([_share(~kept) for _, kept, _ in found], n),
        without=accuracy([_share(right) for right, _, _ in found], n),
        answered=accuracy([_share(right[kept]) for right, kept, _ in found], min(answered))
        if min(answered)
        else None,
        useful=accuracy(useful, n),
        auroc=_measure(areas, sizes),
    )


def _share(rows: Tensor) -> float:
    return int(rows.sum()) / len(rows)


def _measure(areas: Sequence[float], sizes: Sequence[tuple[int, int]]) -> Measure:
    """Return the mean AUROC, with the interval of the smallest numbers that a repeat had."""
    over = spread(areas)
    if over.mean is None:
        return Measure(mean=None, std=None, ci95=None)
    least = [min(one) for one in zip(*sizes, strict=True)]
    return Measure(mean=over.mean, std=over.std, ci95=auroc_interval(over.mean, *least))
