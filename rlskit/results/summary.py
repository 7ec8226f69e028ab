"""From the finished blocks of a run to its numbers.

A block has the columns `index` (among the images that are scored) and `label`, for each kind of
images in `KINDS` the predicted class `[B, counts]` under the kind's name and the share of single
draws that are right under `KIND_gibbs`, the norms of the perturbation, of a targeted attack the
`target`, and what the block cost. Counts: the Ns that were scored, ascending; `which` picks one of
them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlskit.errors import UntrustedError
from rlskit.results.journal import Journal
from rlskit.results.result import Extent, Timing
from rlskit.stats import Accuracy, accuracy, anytime

KINDS = ("clean", "robust", "robust_8bit")
"""Kinds of images that are scored: untouched, attacked, attacked and saved with 8 bits."""

NORMS = ("l0", "l1", "l2", "linf")

COSTS = ("seconds", "forwards", "backwards")
"""What a block cost, one number each."""


def accuracies(
    journals: Sequence[Journal], repeats: int, which: int, *, shuffled: bool = False
) -> dict[str, Accuracy]:
    """Return every accuracy that was scored, each with its denominator.

    `attack_success` is the share of the correctly classified images that the attack turned; its
    denominator is the least over repeats, and it is missing where a repeat got no image right.

    A targeted attack leaves the images of the target class alone, so they withstood nothing:
    `attack_success`, `target_reached` (the answer became the target) and `withstood` (it is still
    the label) are shares of the others; of the last two, whatever the clean answer was. `robust`
    is the accuracy on all images.

    Args:
        journals: Of one evaluation; or of several attacks on the same images, views and draws, for
            the worst case per image: right is what is right under all of them.
        repeats: R.
        which: Index of the N to take.
        shuffled: Whether the images are the first in a random order, so that somebody may have
            looked at fewer of them: the intervals then allow for it.
    """
    names = journals[0].names
    kinds = [kind for kind in KINDS if kind in names]
    found = {}
    for kind in kinds:
        right = [_right(journals, kind, repeat, which).double() for repeat in range(repeats)]
        found[kind] = _accuracy(right)
        gibbs = f"{kind}_gibbs"
        if gibbs in names:
            single = [_least(journals, gibbs, repeat, which) for repeat in range(repeats)]
            found[gibbs] = _accuracy(single)
    if {"clean", "robust"} <= set(kinds):
        found |= _attack_success(journals, repeats, which)
    if all("target" in one.names for one in journals):
        found |= _of_the_attackable(journals, repeats, which)
    return {name: anytime(one) for name, one in found.items()} if shuffled else found


def perturbation(journal: Journal, repeats: int) -> dict[str, Extent] | None:
    """Return median and maximum of each norm over all images and repeats; None without an attack.

    Images that the attack left alone count with 0.
    """
    if not set(NORMS) <= set(journal.names):
        return None
    found = {}
    for norm in NORMS:
        values = torch.cat([journal.column(norm, repeat) for repeat in range(repeats)]).tolist()
        found[norm] = Extent(median=statistics.median(values), max=max(values))
    return found


def timing(journals: Sequence[Journal]) -> Timing:
    """Return what all blocks cost; passes are images x draws, those that score included."""
    cost = {name: sum(journal.total(name) for journal in journals) for name in COSTS}
    return Timing(images_per_second=journals[0].rows / cost["seconds"], **cost)


def per_image(
    journal: Journal, repeats: int, images: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Return the columns of the per-image table; classes and shares are those of the largest N.

    Args:
        journal: Of one evaluation.
        repeats: R.
        images: Columns that say which image of the data set each one is, `[n]`: its `index` there,
            in the place of that among those that were scored; and, of files, its `path`.
    """
    scores = [name for kind in KINDS for name in (kind, f"{kind}_gibbs")]
    names = [
        name
        for name in ("index", "label", "target", *scores, *NORMS, "broken_by")
        if name in journal.names
    ]
    columns: dict[str, list[Any]] = {name: [] for name in ("repeat", *names)}
    for repeat in range(repeats):
        for name in names:
            column = journal.column(name, repeat)
            columns[name] += (column[:, -1] if column.ndim == 2 else column).tolist()
        columns["repeat"] += [repeat] * len(journal.column("index", repeat))
    return columns | {name: [*column] * repeats for name, column in images.items()}


def _accuracy(per_repeat: list[Tensor]) -> Accuracy:
    """Summarise the shares `[n]` in [0, 1] by which each image was right, one tensor per repeat."""
    # `fmean` rounds once, so that the way the column lies in memory does not matter
    means = [statistics.fmean(one.tolist()) for one in per_repeat]
    return accuracy(means, len(per_repeat[0]))


def _attack_success(journals: Sequence[Journal], repeats: int, which: int) -> dict[str, Accuracy]:
    shares, denominators = [], []
    for repeat in range(repeats):
        correct = _right(journals, "clean", repeat, which) & _attackable(journals, repeat)
        turned = correct & ~_right(journals, "robust", repeat, which)
        denominators.append(int(correct.sum()))
        shares.append(int(turned.sum()) / max(denominators[-1], 1))
    if not min(denominators):
        return {}
    return {"attack_success": accuracy(shares, min(denominators))}


def _of_the_attackable(
    journals: Sequence[Journal], repeats: int, which: int
) -> dict[str, Accuracy]:
    """Return which share of the images that are not of the target class did what."""
    reached, withstood = [], []
    for repeat in range(repeats):
        rows = _attackable(journals, repeat)
        reached.append(_reached(journals, repeat, which)[rows].double())
        withstood.append(_right(journals, "robust", repeat, which)[rows].double())
    if not min(map(len, reached)):
        raise UntrustedError(
            "all images are of the target class, so there was nothing to attack; give another "
            "`target`, or images of other classes"
        )
    return {"target_reached": _accuracy(reached), "withstood": _accuracy(withstood)}


def _attackable(journals: Sequence[Journal], repeat: int) -> Tensor:
    """Return which images some of the attacks could move: not those of its target class."""
    labels = journals[0].column("label", repeat)
    free = [
        one.column("target", repeat) != labels
        if "target" in one.names
        else torch.ones_like(labels, dtype=torch.bool)
        for one in journals
    ]
    return torch.stack(free).any(0)


def _reached(journals: Sequence[Journal], repeat: int, which: int) -> Tensor:
    """Return which images some targeted attack moved to its target."""
    reached = [
        one.column("robust", repeat)[:, which] == one.column("target", repeat) for one in journals
    ]
    return torch.stack(reached).any(0)


def _right(journals: Sequence[Journal], kind: str, repeat: int, which: int) -> Tensor:
    """Return which images were right in every journal, bool `[n]`."""
    right = [one.column(kind, repeat)[:, which] == one.column("label", repeat) for one in journals]
    return torch.stack(right).all(0)


def _least(journals: Sequence[Journal], kind: str, repeat: int, which: int) -> Tensor:
    """Return each image's least share of single draws that were right, `[n]`."""
    return torch.stack([one.column(kind, repeat)[:, which] for one in journals]).amin(0)
