"""One evaluation, block by block.

Shapes: B images of a block, N draws, R repeats.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.attacks import ATTACKS
from rlskit.data import blocks, runs, spread
from rlskit.data.adversarial_file import write_adversarial
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits, mean_log_probabilities
from rlskit.documents import to_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation.clean import (
    Knowledge,
    check_expectable,
    check_knowledge,
    check_unseen,
    knowledge,
    look,
)
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.evaluation.subject import Subject
from rlskit.pixels import perturbation_norms, round_to_8bit
from rlskit.progress import Progress
from rlskit.results import ADVERSARIAL, Journal, Result, refuse_finished, summary
from rlskit.runtime.allocator import return_memory
from rlskit.seeds import Purpose
from rlskit.stats import lower_bound
from rlskit.storage.locks import only_writer
from rlskit.threat.adaptive import CLEAN, Adaptive
from rlskit.threat.evading import Evading
from rlskit.threat.preflight import IMAGES, LOOKED_AT, check_answers
from rlskit.threat.single import Threat

A_FEW = 0.01
"""Share of images without a gradient, or without success, that no word is lost about."""


@dataclass(frozen=True)
class Run:
    """One evaluation: what is fixed for all its blocks, and the work on one of them.

    Attributes:
        subject: The model and its images.
        options: Draws, repeats, block size, seed.
        threat: What is done to the images first; None for nothing.
    """

    subject: Subject
    options: EvalOptions
    threat: Threat | Adaptive | Evading | None = None

    def __post_init__(self) -> None:
        if self.subject.data.order is not None and self.options.repeats > 1:
            raise RequestError(
                "nothing bounds the spread over repeats where images come in random order, and one "
                "stops when one likes; leave `repeats` or `shuffle` out"
            )

    @property
    def command(self) -> str:
        """The subcommand that this is the work of."""
        return "eval" if self.threat is None or isinstance(self.threat, Evading) else "attack"

    @property
    def counts(self) -> tuple[int, ...]:
        """The Ns that are scored, ascending."""
        return self.options.counts(self.subject.model)

    def request(self) -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON values."""
        threat = {} if self.threat is None else to_json(self.threat)
        return {
            **self.subject.identity(),
            **threat,
            **self.options.request(self.subject.model),
            "command": self.command,
            "threads": torch.get_num_threads(),
        }

    def journal(self, folder: Path | None, *, force: bool) -> Journal:
        """Return the journal of the run, whose blocks say which images they are of.

        Raises:
            RequestError: The folder holds another run, and `force` is not given.
        """
        data = self.subject.data
        blocks = {one.start: one for one in runs(len(data), self.options.batch_size)}

        @cache
        def images(first: int) -> str:
            return data.subset(blocks[first]).sha256 if first in blocks else ""

        return Journal(folder, self.request(), force=force, images=images)

    def preflight(self) -> None:
        """Look at a few images before any number is computed."""
        model, data = self.subject.model, self.subject.data
        images = data.images(range(min(IMAGES, len(data)))).to(model.device)
        labels = data.labels[:IMAGES].to(model.device)
        (draw,) = draws(model, 1, seed=self.options.seed, purpose=Purpose.DEFENDER)
        if self.threat is None:
            check_answers(draw, images, model.card.classes, model.card.outputs)
        else:
            self.threat.preflight(model, draw, images, labels, self.options.seed)

    def look(self) -> None:
        """Refuse a model that a few clean images, spread over the data, show to know nothing.

        Raises:
            RequestError: A clean accuracy is expected, and the clean images are not at hand.
            UntrustedError: It knows nothing, or surely less than was expected of it.
        """
        subject, data = self.subject, self.subject.clean
        if data is None:
            check_expectable(self.options)
            return
        if self.threat is None and len(data) < 10 * LOOKED_AT:
            return  # an evaluation soon knows by itself
        found = look(subject.model, data.limited(LOOKED_AT), self.options)
        check_knowledge(found, self.options, trained=subject.model.card.trained, final=False)

    def finish(self, journal: Journal, progress: Progress) -> list[Result]:
        """Do every block that the journal does not hold yet; return one result per N."""
        for repeat in range(self.options.repeats):
            self._finish_repeat(repeat, journal, progress)
        assert journal.rows == len(self.subject.data) * self.options.repeats
        # Before anything is written that a reader might believe.
        doubts = self._doubts(journal) + self._masked(journal) + self._failed(journal)
        if self.threat is not None and self.threat.save:
            self._write_adversarial(self.threat, journal)
        images: dict[str, Sequence[Any]] = {"index": self.subject.data.index.tolist()}
        if self.subject.data.paths is not None:
            images["path"] = self.subject.data.paths
        columns = summary.per_image(journal, self.options.repeats, images)
        per_image = journal.write_per_image(columns)
        return [self._result(journal, n, per_image, doubts) for n in range(len(self.counts))]

    def _doubts(self, journal: Journal) -> tuple[str, ...]:
        """Return a sentence where the model may know nothing of the clean images.

        Raises:
            UntrustedError: It surely does not, or less than was expected of it.
        """
        subject, options = self.subject, self.options
        trained = subject.model.card.trained
        if subject.saved is None:
            found = self._knowledge(journal, "clean")
        elif subject.clean is not None:
            limit = LOOKED_AT if options.expect_clean is None else None
            found = look(subject.model, subject.clean.limited(limit), options)
        elif subject.made_here and trained:
            return ()  # the attack that made them looked
        else:
            return check_unseen(self._knowledge(journal, "robust"), options)
        shuffled = subject.data.order is not None
        return check_knowledge(found, options, trained=trained, final=True, shuffled=shuffled)

    def _knowledge(self, journal: Journal, kind: str) -> Knowledge:
        """Return what the largest N knows of a kind of images that were scored."""
        repeats = range(self.options.repeats)
        answers = [journal.column(kind, repeat)[:, -1] for repeat in repeats]
        return knowledge(journal.column("label", 0), answers, self.subject.model.card.classes)

    def _masked(self, journal: Journal) -> tuple[str, ...]:
        """Return a sentence where the attack's gradients vanish, told from a block's images.

        Raises:
            UntrustedError: The margin's do, too, at clearly more than a few that count as robust.
        """
        if self.threat is None:
            return ()
        model, data = self.subject.model, self.subject.data
        some = spread(len(data), min(LOOKED_AT, self.options.batch_size, len(data)))
        images, labels = data.images(some).to(model.device), data.labels[some].to(model.device)
        found = self.threat.masked(model, images, labels, self.options.seed)
        robust = journal.column("robust", 0)[some, -1] == data.labels[some]
        count = int((found.lost.cpu() & robust).sum())
        if lower_bound([count / len(some)], len(some)) > A_FEW:
            raise UntrustedError(
                f"{found.sentence}. {count} of them do count, and the margin has no gradient "
                "either: the model masks it, and there is no result"
            )
        return (f"{found.sentence}.",) if found.sentence else ()

    def _failed(self, journal: Journal) -> tuple[str, ...]:
        """Return a sentence where an attack that nothing limits gave images back as they were."""
        if not isinstance(self.threat, Threat) or not ATTACKS[self.threat.attack.method].unlimited:
            return ()
        robust = journal.column("robust", 0)[:, -1] == journal.column("label", 0)
        left = int((robust & (journal.column("l0", 0) == 0)).sum())
        if lower_bound([left / len(robust)], len(robust)) <= A_FEW:
            return ()
        method = self.threat.attack.method
        fixed = self.threat.attack.params.get("search_steps") == 1
        more = "`search_steps=9`" if fixed else "more `steps`"
        return (
            f"FAILED SEARCHES: {method} gave {left} of {len(robust)} images back as they were. "
            f"Nothing limits how far it may go, so unless the draws it saw err there, it failed, "
            f"and its robust accuracy says nothing of the model; give {more}.",
        )

    @property
    def _saved_target(self) -> int | None:
        """The class that saved images were moved to; None where it was no single one."""
        attack = self.subject.attack
        target = None if attack is None else attack.params.get("target")
        return target if isinstance(target, int) else None

    def _finish_repeat(self, repeat: int, journal: Journal, progress: Progress) -> None:
        data, options = self.subject.data, self.options
        defenders = None if options.per_example else self._defenders(repeat)
        sizes = runs(len(data), options.batch_size)
        finished = {i for i, run in enumerate(sizes) if journal.get(repeat, run.start)}
        if len(finished) < len(sizes):
            self._tell(journal, progress)  # the first block may take long
        stream = blocks(data, options.batch_size, options.num_workers, done=finished)
        for indices, images, labels in stream:
            block = self._block(repeat, indices, images, labels, defenders, progress)
            journal.put(repeat, indices.start, block)
            return_memory()
            self._tell(journal, progress)

    def _tell(self, journal: Journal, progress: Progress) -> None:
        """Say how many images are done, of all repeats."""
        step = "evaluating" if self.threat is None else f"attacking with {self.threat.label}"
        progress(step, journal.rows, len(self.subject.data) * self.options.repeats)

    def _block(
        self,
        repeat: int,
        indices: range,
        images: Tensor,
        labels: Tensor,
        defenders: list[nn.Module] | None,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Do the work on a block, image by image where there are no defenders for all of them."""
        if defenders is not None:
            return self._attack_and_score(repeat, indices, images, labels, defenders, progress)
        parts = []
        for i, index in enumerate(indices):
            one, own = slice(i, i + 1), self._defenders(repeat, index)
            some = indices[one], images[one], labels[one]
            parts.append(self._attack_and_score(repeat, *some, own, progress, index))
        block = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return block | {name: block[name].sum(0, keepdim=True) for name in summary.COSTS}

    def _attack_and_score(
        self,
        repeat: int,
        indices: range,
        images: Tensor,
        labels: Tensor,
        defenders: list[nn.Module],
        progress: Progress,
        image: int | None = None,
    ) -> dict[str, Tensor]:
        """Attack and score some images; return their columns, each with B rows, and their cost.

        The index of an image says that it is the only one, with draws of its own.
        """
        start = time.perf_counter()
        device = self.subject.model.device
        images, wanted = images.to(device), labels.to(device)
        scored = "clean" if self.subject.saved is None else "robust"
        block = {"index": torch.arange(indices.start, indices.stop), "label": labels}
        block |= self._scores(scored, defenders, images, wanted)
        if (target := self._saved_target) is not None:
            block["target"] = torch.full_like(labels, target)
        cost = [len(images) * len(defenders), 0]  # what draws share counts for each of them
        if self.threat is not None:
            crafted = self.threat.craft(
                self.subject.model, images, wanted, seed=self.options.seed, repeat=repeat,
                image=image, progress=progress,
            )  # fmt: skip
            changed = crafted.images
            block |= crafted.columns
            block |= self._scores("robust", defenders, changed, wanted)
            block |= perturbation_norms(images, changed)
            cost = [2 * cost[0] + crafted.forwards, crafted.backwards]
            if self.threat.save:
                saved = self._scores("robust_8bit", defenders, round_to_8bit(changed), wanted)
                block["robust_8bit"] = saved["robust_8bit"]
                cost[0] += len(images) * len(defenders)
                if repeat == 0:
                    block["adversarial"] = changed
        block = {name: column.cpu() for name, column in block.items()}  # a GPU is done only now
        block["forwards"], block["backwards"] = torch.tensor(cost[:1]), torch.tensor(cost[1:])
        block["seconds"] = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        return block

    @torch.no_grad()
    def _scores(
        self, kind: str, defenders: list[nn.Module], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer of the first N draws for each N, `[B, counts]`, and the Gibbs share.

        Raises:
            UntrustedError: A draw's logits are not finite.
        """
        logits = finite_logits(
            defenders, images
        ).double()  # near logits must not tie as probabilities
        answers = [mean_log_probabilities(logits[:n]).argmax(-1) for n in self.counts]
        right = (logits.argmax(-1) == labels).double()
        single = [right[:n].mean(0) for n in self.counts]
        return {kind: torch.stack(answers, 1), f"{kind}_gibbs": torch.stack(single, 1)}

    def _defenders(self, repeat: int, image: int | None = None) -> list[nn.Module]:
        return draws(
            self.subject.model, self.counts[-1], seed=self.options.seed, purpose=Purpose.DEFENDER,
            repeat=repeat, image=image,
        )  # fmt: skip

    def _write_adversarial(self, threat: Threat | Adaptive | Evading, journal: Journal) -> None:
        """Write the first repeat's adversarial images to the run's folder."""
        assert journal.folder is not None
        about = {
            "checkpoint_sha256": self.subject.digest,
            "classes": self.subject.model.card.classes,
            "data": self.subject.image_facts(),
            "seed": self.options.seed,
            **threat.facts(),
        }
        data = self.subject.data
        if data.paths is not None:
            about["paths"] = data.paths
        images, labels = (journal.column(name, 0) for name in ("adversarial", "label"))
        write_adversarial(journal.folder / ADVERSARIAL, images, labels, data.index, about)

    def _result(
        self, journal: Journal, which: int, per_image: str | None, doubts: tuple[str, ...]
    ) -> Result:
        options = self.options
        facts = self.subject.facts()
        facts["warnings"] += doubts
        if self.threat is not None:
            facts |= self.threat.facts()
            facts["warnings"] += self.threat.warnings(self.subject.model)
        shuffled = self.subject.data.order is not None
        accuracies = summary.accuracies([journal], options.repeats, which, shuffled=shuffled)
        if "withstood" in accuracies:
            facts["warnings"] += (_targeted(accuracies["withstood"].n, len(self.subject.data)),)
        if isinstance(self.threat, Adaptive):
            repeats = range(options.repeats)
            broken_by = torch.cat([journal.column("broken_by", repeat) for repeat in repeats])
            origins = {"clean": CLEAN} | {p.name: i for i, p in enumerate(self.threat.parts)}
            broken = {name: int((broken_by == one).sum()) for name, one in origins.items()}
            facts["attack"] = replace(facts["attack"], broken=broken)
        return Result(
            **facts,
            command=self.command,
            n_samples=self.counts[which],
            repeats=options.repeats,
            seed=options.seed,
            batch_size=options.batch_size,
            accuracy=accuracies,
            perturbation=summary.perturbation(journal, options.repeats),
            timing=summary.timing([journal]),
            per_image=per_image,
            per_example=options.per_example,
        )


def _targeted(attackable: int, n: int) -> str:
    """Return what a reader of a targeted attack's numbers must know first."""
    return (
        f"TARGETED: {n - attackable} of {n} images are of the target class and were left alone; "
        "target reached and attack success are of the others, and so is what a gate looks at. "
        "Robust is the accuracy on all images: an attack without a target leaves less of it."
    )


@contextlib.contextmanager
def run_folder(out: Path | None, force: bool) -> Iterator[None]:
    """Hold the run's folder, which holds no finished run, against all other writers."""
    with only_writer(out):
        if out is not None:
            refuse_finished(out, force=force)
        yield
