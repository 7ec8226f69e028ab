"""Whether a finished attack's number holds: its saved images are looked at and scored again.

What is left under attack is at most what is left on images that anybody can look at: k of n are
answered wrongly on images within the budget of the clean ones. To see it takes no attack.

Shapes: n images, of the first repeat; N draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.arguments import checked
from rlskit.data import MEMORY, Data, blocks, load
from rlskit.data.adversarial_file import SavedAdversarial, SavedFacts, read_adversarial
from rlskit.defenses import defense_of, draws
from rlskit.defenses.answers import finite_logits, joint_answer
from rlskit.documents import from_json, to_json
from rlskit.errors import RequestError, UntrustedError, reason
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.inputs import GivenData, taken
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.pixels import check_adversarial, perturbation_norms
from rlskit.progress import Progress, no_progress
from rlskit.results import ADVERSARIAL, PROOF, RESULTS, Finished, Result, read_answers, read_run
from rlskit.results.finished import Answers
from rlskit.results.result import AttackFacts
from rlskit.results.summary import NORMS
from rlskit.results.words import attack_label, protocol
from rlskit.seeds import Purpose
from rlskit.stats import accuracy, anytime
from rlskit.storage.sums import SUMS, changed_files
from rlskit.threat.budget import budget_of

SCHEMA = "rlskit.verified/1"

_SHOWN = 5


@dataclass(frozen=True)
class Confirmed:
    """One thing that a number rests on.

    Attributes:
        name: `files`, `weights`, `attack`, `images`, `budget`, `answers` or `count`.
        holds: Whether it is as the result says.
        detail: What was seen, for people.
    """

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What became of a number when its images were scored again.

    Attributes:
        run: The attack's folder.
        checkpoint: The model's file; None for a model in memory.
        images: How many were scored; None where it did not come to that.
        wrong: How many of them are answered wrongly, as the result says, too; None likewise.
        steps: What the number rests on, in the order in which it was looked at; what would come
            after one that does not hold was not looked at.
        sentence: What is confirmed, or what is not.
    """

    run: str
    checkpoint: str | None
    images: int | None = None
    wrong: int | None = None
    steps: tuple[Confirmed, ...]
    sentence: str

    @property
    def holds(self) -> bool:
        """Whether the number is confirmed."""
        return all(step.holds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"schema": SCHEMA, "holds": self.holds, **to_json(self)}


class _BrokenError(Exception):
    """Something is not as the result says: the name of the step, and what is so."""


@dataclass(frozen=True)
class _Case:
    """What is verified: an attack's result and images, and the model and images to hold them to."""

    part: Finished
    saved: SavedAdversarial
    model: BankedModel
    clean: Data

    @property
    def result(self) -> Result:
        return self.part.result

    @property
    def attack(self) -> AttackFacts:
        assert self.result.attack is not None
        return self.result.attack


@checked()
def verify(
    run: str | Path,
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    data_dir: str | Path | None = None,
    progress: Progress = no_progress,
) -> Verified:
    """Look at the saved images of an attack, and score them again.

    Args:
        run: The folder of one attack that kept its images (`save_adversarial`).
        model: The model that was attacked, from `load`, on the device to use.
        data: The clean images, where they are from a path or from memory: a path in the run's files
            is not followed.
        data_dir: Where torchvision's data sets lie.
        progress: Told of every block.

    Returns:
        What holds and what does not; nothing is raised where a number does not hold.

    Raises:
        RequestError: A file is missing or cannot be read, or the clean images are not at hand.
        UntrustedError: Logits are not finite.
    """
    folder = Path(run).parent if Path(run).name == RESULTS else Path(run)
    banked, given = taken(model, data)
    steps: list[Confirmed] = []
    about: dict[str, Any] = {"run": str(folder), "checkpoint": banked.path}
    try:
        steps.append(_files(folder))
        part = _part(folder)
        saved = read_adversarial(folder / ADVERSARIAL)
        steps.append(_weights(part.result, saved.about, banked))
        steps.append(_attack(part.result, saved.about))
        clean = _clean(part.result, saved, banked, given, data_dir)
        case = _Case(part, saved, banked, clean)
        steps += _images(case), _budget(case)
        table = read_answers(part)
        steps.append(_answers(case, table, progress))
        steps.append(_count(case, table))
    except _BrokenError as error:
        name, detail = error.args
        steps.append(Confirmed(name, False, detail))
        said = f"not confirmed: {detail}"
        return Verified(**about, steps=tuple(steps), sentence=said)
    wrong = int((~table.right["robust"][0]).sum())
    about |= {"images": len(clean), "wrong": wrong}
    return Verified(**about, steps=tuple(steps), sentence=_sentence(case, wrong))


def _files(folder: Path) -> Confirmed:
    """Hold the run's files against their digests."""
    if not (folder / ADVERSARIAL).is_file():
        raise RequestError(
            f"{folder} holds no {ADVERSARIAL} to verify; name the folder of one attack that was "
            "run with `rlskit.attack(save_adversarial=True)`"
        )
    changed = changed_files(folder, PROOF)
    if changed:
        raise _BrokenError("files", f"not as the run wrote them: {', '.join(changed)}")
    if changed is None:
        said = f"no {SUMS}, as in older runs: what decides no number was not compared"
        return Confirmed("files", True, said)
    return Confirmed("files", True, f"{', '.join(PROOF)} are as the run wrote them")


def _part(folder: Path) -> Finished:
    """Return the one attack of a folder.

    Raises:
        RequestError: It is of no attack, or of several.
    """
    parts = read_run(folder).parts
    result = parts[0].result
    if len(parts) != 1 or result.attack is None or "robust" not in result.accuracy:
        raise RequestError(f"{folder} is no run of one attack; name the folder of one")
    EvalOptions(n_samples=result.n_samples, repeats=result.repeats)  # refuses what is beyond reason
    return parts[0]


def _weights(result: Result, about: SavedFacts, model: BankedModel) -> Confirmed:
    """Require the very model."""
    own = checkpoint.digest_of(model)
    for said, whose in (
        (result.checkpoint.sha256, RESULTS),
        (about.checkpoint_sha256, ADVERSARIAL),
    ):
        if said != own:
            raise _BrokenError(
                "weights", f"{whose} is of the model {str(said)[:12]}..., this one is {own[:12]}..."
            )
    return Confirmed("weights", True, f"the model is the one that was attacked, sha256 {own}")


def _attack(result: Result, about: SavedFacts) -> Confirmed:
    """Require that the images are those of the result's attack, as their sealed file says."""
    try:
        saved = from_json(about.attack, AttackFacts)
    except ValueError as error:
        raise RequestError(
            f"{ADVERSARIAL}: its metadata is unreadable ({reason(error)})"
        ) from error
    assert result.attack is not None
    pairs = {
        "attack": (saved, replace(result.attack, broken=None)),
        "protocol": (about.protocol, result.protocol),
        "n_attacked": (about.n_attacked, result.n_attacked),
        "seed": (about.seed, result.seed),
        "data": (to_json(about.data), to_json(replace(result.data, skipped=None))),
    }
    other = [name for name, (one, two) in pairs.items() if one != two]
    if other:
        raise _BrokenError("attack", f"{RESULTS} and {ADVERSARIAL} differ in {', '.join(other)}")
    said = f"the images are those of {attack_label(result)}, {protocol(result)}, seed {result.seed}"
    return Confirmed("attack", True, said)


def _clean(
    result: Result,
    saved: SavedAdversarial,
    model: BankedModel,
    data: str | Data | None,
    data_dir: str | Path | None,
) -> Data:
    """Return the images before the attack, as the model takes them.

    Raises:
        RequestError: They are not at hand.
    """
    name = data or saved.about.data.name
    if data is None and (":" in str(name) or name == MEMORY):
        raise RequestError(
            f"the clean images were {name}, and no path of a run's files is followed; name them "
            "with `data`"
        )
    if not isinstance(name, Data):
        skipped = result.data.skipped or 0  # they were left out after the limit was taken
        name = load(
            name, result.data.split, data_dir=data_dir, limit=result.data.n + skipped,
            skip_bad=bool(skipped), order=result.data.order,
        )  # fmt: skip
    return name.adapted(model.card.pixels, model.card.classes, model.card.names)


def _images(case: _Case) -> Confirmed:
    """Require the very images, with their labels, in their order."""
    clean, saved = case.clean, case.saved.data
    if clean.sha256 != case.result.data.sha256:
        raise _BrokenError(
            "images", f"{clean.name} is not the data that was attacked: its sha256 is "
            f"{clean.sha256[:12]}..., that of the result {case.result.data.sha256[:12]}...",
        )  # fmt: skip
    same = {"shape": saved.shape == clean.shape, "labels": torch.equal(saved.labels, clean.labels)}
    if len(saved) == len(clean):
        same["indices"] = torch.equal(saved.index, clean.index)
    if other := [name for name, equal in same.items() if not equal]:
        raise _BrokenError("images", f"{ADVERSARIAL} differs from the data in {', '.join(other)}")
    said = f"{len(clean):,} clean images and their labels are those that were attacked"
    return Confirmed("images", True, f"{said}, sha256 {clean.sha256}")


def _budget(case: _Case) -> Confirmed:
    """Require of every image that it lies in [0, 1] and within the budget of the clean one."""
    norm, eps = budget_of(case.attack) or (None, None)
    if norm not in (None, *NORMS):
        raise RequestError(f"the norm {norm} of the attack is unknown; it is of {', '.join(NORMS)}")
    largest = 0.0
    size = case.result.batch_size
    for (_, clean, _), (_, changed, _) in zip(
        blocks(case.clean, size), blocks(case.saved.data, size), strict=True
    ):
        try:
            check_adversarial(clean, changed, norm, eps)
        except UntrustedError as error:
            raise _BrokenError("budget", str(error)) from error
        largest = max(largest, perturbation_norms(clean, changed)[norm or "l2"].max().item())
    within = "without a budget" if eps is None else f"within {norm} {eps:.6g}"
    said = f"all in [0, 1] and {within} of the clean ones; the furthest is at {largest:.6g}"
    return Confirmed("budget", True, said + " in l2" * (eps is None))


def _answers(case: _Case, table: Answers, progress: Progress) -> Confirmed:
    """Require the model's answers, before the attack and after it, to be those of the table."""
    order = case.clean.index.argsort()  # in which the table is read
    if table.index.tolist() != case.clean.index[order].tolist():
        raise _BrokenError("answers", "the per-image table is of other images")
    if table.label.tolist() != case.clean.labels[order].tolist():
        raise _BrokenError("answers", "the per-image table has other labels")
    kinds = {"clean": case.clean, "robust": case.saved.data}
    for kind in table.right:
        right = _right(case, kinds[kind], f"scoring {kind} images", progress)[order]
        other = (right.numpy() != table.right[kind][0]).nonzero()[0]
        if len(other):
            more = ", ..." * (len(other) > _SHOWN)
            raise _BrokenError(
                "answers",
                f"of {len(right)} {kind} images {len(other)} are answered otherwise than the table "
                f"says (index {', '.join(map(str, table.index[other[:_SHOWN]]))}{more})"
                + _elsewhere(case),
            )
    return Confirmed("answers", True, f"every image is answered as the table says, {_said(case)}")


def _elsewhere(case: _Case) -> str:
    """Return what else may make answers differ: another machine rounds otherwise."""
    device = case.model.device.type
    if device == case.result.device:
        return ""
    return f"; the run was on {case.result.device} and this is {device}, which rounds otherwise"


@torch.no_grad()
def _right(case: _Case, data: Data, step: str, progress: Progress) -> Tensor:
    """Return which images the draws of the first repeat answer rightly, bool `[n]`."""
    result = case.result
    shared = None if result.per_example else _defenders(case, None)
    found = []
    for indices, images, labels in blocks(data, result.batch_size):
        images = images.to(case.model.device)
        if shared is not None:
            found.append(_answer(shared, images) == labels)
        else:
            for one, index in enumerate(indices):
                answer = _answer(_defenders(case, index), images[one : one + 1])
                found.append(answer == labels[one : one + 1])
        progress(step, indices.stop, len(data))
    return torch.cat(found)


def _defenders(case: _Case, image: int | None) -> list[nn.Module]:
    return draws(
        case.model, case.result.n_samples, seed=case.result.seed, purpose=Purpose.DEFENDER,
        image=image,
    )  # fmt: skip


def _answer(members: list[nn.Module], images: Tensor) -> Tensor:
    """Return what draws answer together, long `[B]`."""
    return joint_answer(finite_logits(members, images)).cpu()


def _count(case: _Case, table: Answers) -> Confirmed:
    """Require the result's accuracies to be the table's, with interval and bounds."""
    for kind, right in table.right.items():
        said = case.result.accuracy[kind]
        means = [float(one.mean()) for one in right]
        found = accuracy(means, right.shape[1])
        if case.result.data.order is not None:
            found = anytime(found)
        if said.upper_bound == 1:  # older results have none
            found = replace(found, upper_bound=1.0)
        if not _alike(to_json(found), to_json(said)):
            raise _BrokenError("count", f"{RESULTS} says otherwise of {kind} than its own table")
    robust = case.result.accuracy["robust"]
    return Confirmed("count", True, f"the result's {100 * robust.mean:.2f} % is what is counted")


def _alike(one: Any, other: Any) -> bool:
    """Whether JSON values are the same but for the last digits of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return len(one) == len(other) and all(map(_alike, one, other))
    if one is None or other is None:
        return one is other
    return bool(abs(one - other) <= 1e-9)


def _said(case: _Case) -> str:
    """Return whose answer it is: of random draws the very ones, drawn again."""
    n = case.result.n_samples
    known = defense_of(case.model).distinct(case.model)
    if known is not None and n >= known:
        return "which draws nothing at random"
    each = "of each image" if case.result.per_example else f"(seed {case.result.seed}, repeat 0)"
    return f"by the very {n} draws {each} that answered then, drawn again: others may differ"


def _sentence(case: _Case, wrong: int) -> str:
    """Return what is confirmed."""
    n, budget, left = len(case.clean), budget_of(case.attack), "robust accuracy"
    if budget is None:
        left, where = f"what {case.attack.method} leaves", "at any distance from"
    else:
        where = f"within {budget[0]} {budget[1]:.6g} of"
    also = ""
    if case.result.repeats > 1:
        also = f"; this is the first of {case.result.repeats} repeats, whose images alone are kept"
    return (
        f"confirmed: {left} is at most {100 * (n - wrong) / n:.2f} % ({wrong:,} of {n:,} images "
        f"are wrong on images {where} the clean ones), {_said(case)}{also}"
    )
