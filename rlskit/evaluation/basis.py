"""From the finished blocks of a run to its files and results, without the model and its images.

One process does it at the end of its run, and `merge` with what the shards of a run noted: the
same doubts, from the same blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from rlskit.attacks import ATTACKS
from rlskit.data.adversarial_file import write_adversarial
from rlskit.documents import Count, Number, Share, Whole
from rlskit.errors import UntrustedError
from rlskit.evaluation.clean import Knowledge, check_knowledge, check_unseen, knowledge
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.results import ADVERSARIAL, Journal, Result, summary
from rlskit.results.abstained import abstention
from rlskit.results.result import AttackFacts, CheckpointFacts, ImageFacts, ModelFacts
from rlskit.stats import lower_bound
from rlskit.storage.files import Pieces
from rlskit.threat.adaptive import CLEAN, PROTOCOL

A_FEW = 0.01
"""Share of images without a gradient, or without success, that no word is lost about."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The fields of a `Result` that do not depend on what is measured; see there."""

    command: str
    checkpoint: CheckpointFacts
    model: ModelFacts
    defense: str
    data: ImageFacts
    protocol: str
    attack: AttackFacts | None
    n_attacked: Count | None
    device: str
    versions: Mapping[str, str]
    repeats: Count
    seed: int
    batch_size: Count
    per_example: bool


@dataclass(frozen=True, kw_only=True)
class Clean:
    """How it is told whether the model knows anything.

    Attributes:
        by: The images that were scored and tell it: `clean`, `robust` where nothing is known of
            clean ones, or empty where `known` does, or nothing needs to.
        known: What it knows of clean images, where saved adversarial ones were scored.
        classes: How many it tells apart.
        trained: Whether it is more than a random initialisation.
        expected: The clean accuracy that is expected; None for any.
    """

    by: str
    known: Knowledge | None
    classes: Count
    trained: bool
    expected: Share | None


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What a look at the attack's gradients at some of the images found, `[k]`.

    Attributes:
        images: Which ones, of those that were scored.
        lost: Where not even the margin has one.
        sentence: For people; empty where the attack had one everywhere.
    """

    images: tuple[Whole, ...]
    lost: tuple[bool, ...]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Abstaining:
    """What `rlskit.results.abstained.abstention` takes."""

    false_alarms: Share
    held_out: Count
    thresholds: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What the end of a run needs beside its blocks.

    Attributes:
        facts: Of the result.
        warnings: What a reader must know of the model and the images.
        hints: What he must know of the threat.
        counts: The Ns that were scored, ascending.
        index: Of the images in the whole data set, `[n]`.
        paths: Of images from a folder.
        clean: How it is told whether the model knows anything.
        gradients: Where the attack may stand still; None without an attack.
        saves: Whether the adversarial images are written.
        abstaining: Of `eval --abstain`.
    """

    facts: Facts
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    counts: tuple[Count, ...]
    index: tuple[Whole, ...]
    paths: tuple[str, ...] | None
    clean: Clean
    gradients: Gradients | None
    saves: bool
    abstaining: Abstaining | None = None


def conclude(basis: Basis, journal: Journal, *, gated: bool) -> list[Result]:
    """Write the table and the images of a run whose blocks are all there; return its results.

    Args:
        basis: What is known beside the blocks.
        journal: The blocks.
        gated: Whether a gate decides on the result.

    Returns:
        One result per N.

    Raises:
        UntrustedError: The model knows nothing or masks its gradients: there is no result.
    """
    # Before anything is written that a reader might believe.
    doubts = _doubts(basis, journal, gated) + _masked(basis, journal)
    doubts += _still(basis, journal) + _failed(basis, journal)
    if basis.saves:
        _write_adversarial(basis, journal)
    images: dict[str, Sequence[Any]] = {"index": basis.index}
    if basis.paths is not None:
        images["path"] = basis.paths
    columns = summary.per_image(journal, basis.facts.repeats, images)
    per_image = journal.write_per_image(columns)
    return [_result(basis, journal, n, per_image, doubts) for n in range(len(basis.counts))]


def _doubts(basis: Basis, journal: Journal, gated: bool) -> tuple[str, ...]:
    """Return a sentence where the model may know nothing of the clean images.

    Raises:
        UntrustedError: It surely does not, or less than was expected of it.
    """
    clean = basis.clean
    options = EvalOptions(expect_clean=clean.expected, gated=gated)
    found = clean.known
    if clean.by:
        repeats = range(basis.facts.repeats)
        answers = [journal.column(clean.by, repeat)[:, -1] for repeat in repeats]
        found = knowledge(journal.column("label", 0), answers, clean.classes)
    if found is None:
        return ()  # the attack that made the images looked
    if clean.by == "robust":
        return check_unseen(found, options)
    return check_knowledge(
        found, options, trained=clean.trained, final=True, shuffled=_is_shuffled(basis)
    )


def _is_shuffled(basis: Basis) -> bool:
    """Whether the images are the first in a random order, so that more may be asked for."""
    return basis.facts.data.order is not None


def _masked(basis: Basis, journal: Journal) -> tuple[str, ...]:
    """Return a sentence where the attack's gradients vanish, told from a block's images.

    Raises:
        UntrustedError: The margin's do, too, at clearly more than a few that count as robust.
    """
    found = basis.gradients
    if found is None:
        return ()
    some = torch.tensor(found.images)
    robust = _robust(journal, 0)[some]
    count = int((torch.tensor(found.lost) & robust).sum())
    if lower_bound([count / len(some)], len(some)) > A_FEW:
        raise UntrustedError(
            f"{found.sentence}. {count} of them do count, and the margin has no gradient "
            "either: the model masks it, and there is no result"
        )
    return (f"{found.sentence}.",) if found.sentence else ()


def _still(basis: Basis, journal: Journal) -> tuple[str, ...]:
    """Return a sentence where an attack with a budget above 0, or without one, changed no image."""
    attack = basis.facts.attack
    if attack is None or "l0" not in journal.names or attack.params.get("eps") == 0:
        return ()
    repeats = range(basis.facts.repeats)
    moved = any(journal.column("l0", repeat).any() for repeat in repeats)
    if moved or not any(_robust(journal, repeat).any() for repeat in repeats):
        return ()
    return (
        f"STOOD STILL: {attack.method} changed no image, so that its robust accuracy is the clean "
        "one: are its options so small that nothing can move?",
    )


def _robust(journal: Journal, repeat: int) -> torch.Tensor:
    return journal.column("robust", repeat)[:, -1] == journal.column("label", repeat)


def _failed(basis: Basis, journal: Journal) -> tuple[str, ...]:
    """Return a sentence where an attack that nothing limits gave images back as they were."""
    attack = basis.facts.attack
    known = None if attack is None or basis.gradients is None else ATTACKS.get(attack.method)
    if attack is None or known is None or not known.unlimited:
        return ()
    robust = _robust(journal, 0)
    left = int((robust & (journal.column("l0", 0) == 0)).sum())
    if lower_bound([left / len(robust)], len(robust)) <= A_FEW:
        return ()
    fixed = attack.params.get("search_steps") == 1
    more = "`search_steps=9`" if fixed else "more `steps`"
    return (
        f"FAILED SEARCHES: {attack.method} gave {left} of {len(robust)} images back as they were. "
        f"Nothing limits how far it may go, so unless the draws it saw err there, it failed, "
        f"and its robust accuracy says nothing of the model; give {more}.",
    )


def _write_adversarial(basis: Basis, journal: Journal) -> None:
    """Write the first repeat's adversarial images to the run's folder."""
    assert journal.folder is not None
    facts = basis.facts
    about: dict[str, Any] = {
        "checkpoint_sha256": facts.checkpoint.sha256,
        "classes": basis.clean.classes,
        "data": facts.data,
        "seed": facts.seed,
        "attack": facts.attack,
        "protocol": facts.protocol,
        "n_attacked": facts.n_attacked,
    }
    if basis.paths is not None:
        about["paths"] = basis.paths
    indices = torch.tensor(basis.index)
    read = partial(journal.pieces, "adversarial", 0)
    one = next(read())
    images = Pieces(one.dtype, (len(indices), *one.shape[1:]), read)
    path, labels = journal.folder / ADVERSARIAL, journal.column("label", 0)
    write_adversarial(path, images, labels, indices, about)


def _result(
    basis: Basis, journal: Journal, which: int, per_image: str | None, doubts: tuple[str, ...]
) -> Result:
    facts = {field.name: getattr(basis.facts, field.name) for field in fields(Facts)}
    repeats, n = basis.facts.repeats, basis.facts.data.n
    warnings = basis.warnings + doubts + basis.hints
    accuracies = summary.accuracies([journal], repeats, which, shuffled=_is_shuffled(basis))
    if "withstood" in accuracies:
        warnings += (_targeted(accuracies["withstood"].n, n),)
    abstained = basis.abstaining
    return Result(
        **facts | {"attack": _attack(basis.facts, journal)},
        n_samples=basis.counts[which],
        accuracy=accuracies,
        perturbation=summary.perturbation(journal, repeats),
        abstention=None if abstained is None else abstention(journal, **vars(abstained)),
        timing=summary.timing([journal]),
        per_image=per_image,
        warnings=warnings,
    )


def _attack(facts: Facts, journal: Journal) -> AttackFacts | None:
    """Return what was done to the images; of `adaptive`, also how many each part broke."""
    attack = facts.attack
    if attack is None or facts.protocol != PROTOCOL or "broken_by" not in journal.names:
        return attack
    repeats = range(facts.repeats)
    broken_by = torch.cat([journal.column("broken_by", repeat) for repeat in repeats])
    origins = {"clean": CLEAN} | {one.name: i for i, one in enumerate(attack.parts or ())}
    broken = {name: int((broken_by == one).sum()) for name, one in origins.items()}
    return replace(attack, broken=broken)


def _targeted(attackable: int, n: int) -> str:
    """Return what a reader of a targeted attack's numbers must know first."""
    return (
        f"TARGETED: {n - attackable} of {n} images are of the target class and were left alone; "
        "target reached and attack success are of the others, and so is what a gate looks at. "
        "Robust is the accuracy on all images: an attack without a target leaves less of it."
    )
