"""One evaluation, block by block.

Shapes: B images of a block, N draws, R repeats.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.data import blocks, runs, spread
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits, joint_answer
from rlskit.documents import to_json
from rlskit.errors import RequestError, UnmergedError
from rlskit.evaluation.basis import Abstaining, Basis, Clean, Facts, Gradients, conclude
from rlskit.evaluation.clean import check_expectable, check_knowledge, look
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.evaluation.subject import Subject
from rlskit.pixels import perturbation_norms, round_to_8bit
from rlskit.progress import Progress
from rlskit.results import Journal, Result, note_shard, refuse_finished, summary
from rlskit.runtime.allocator import return_memory
from rlskit.runtime.interruptions import unbroken
from rlskit.seeds import Purpose
from rlskit.storage.locks import in_turn, only_writer
from rlskit.threat.adaptive import Adaptive
from rlskit.threat.evading import Evading
from rlskit.threat.preflight import IMAGES, LOOKED_AT, check_answers
from rlskit.threat.single import Threat


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

    def journal(self, folder: Path | None, *, force: bool, below: bool = False) -> Journal:
        """Return the journal of the run, whose blocks say which images they are of.

        Args:
            folder: Where it is kept; None for nowhere.
            force: Whether it replaces a finished run, and one of another request.
            below: Whether it is one of several attacks, which are finished together.

        Raises:
            RequestError: The folder holds another run, and `force` is not given.
        """
        data = self.subject.data
        blocks = {one.start: one for one in runs(len(data), self.options.batch_size)}

        @cache
        def images(first: int) -> str:
            return data.subset(blocks[first]).sha256 if first in blocks else ""

        return Journal(folder, self.request(), force=force, images=images, below=below)

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
        """Do every block that the journal does not hold yet; return one result per N.

        Of a shard, do its own blocks only, note that they are done, and return none.
        """
        for repeat in range(self.options.repeats):
            self._finish_repeat(repeat, journal, progress)
        if self.options.part is not None:
            note_shard(journal, self.options.part, self.request(), self._basis())
            return []
        assert journal.rows == len(self.subject.data) * self.options.repeats
        return conclude(self._basis(), journal, gated=self.options.gated)

    def _basis(self) -> Basis:
        """Return what the end of the run needs beside its blocks."""
        subject, options = self.subject, self.options
        facts = subject.facts()
        warnings, hints = facts.pop("warnings"), tuple[str, ...]()
        if self.threat is not None:
            facts |= self.threat.facts()
            hints = self.threat.warnings(subject.model)
        abstaining = None
        if isinstance(self.threat, Evading):
            abstaining = Abstaining(
                false_alarms=self.threat.abstain,
                held_out=self.threat.held_out_images,
                thresholds=self.threat.thresholds,
            )
        return Basis(
            facts=Facts(
                **facts, command=self.command, repeats=options.repeats, seed=options.seed,
                batch_size=options.batch_size, per_example=options.per_example,
            ),
            warnings=warnings,
            hints=hints,
            counts=self.counts,
            index=tuple(subject.data.index.tolist()),
            paths=subject.data.paths,
            clean=self._clean(),
            gradients=self._gradients(),
            saves=self.threat is not None and self.threat.save,
            abstaining=abstaining,
        )  # fmt: skip

    def _clean(self) -> Clean:
        """Return how it is told whether the model knows anything."""
        subject, options = self.subject, self.options
        by, known, trained = "", None, subject.model.card.trained
        if subject.saved is None:
            by = "clean"
        elif subject.clean is not None:
            limit = LOOKED_AT if options.expect_clean is None else None
            known = look(subject.model, subject.clean.limited(limit), options)
        elif not (subject.made_here and trained):  # else the attack that made them looked
            by = "robust"
        classes, expected = subject.model.card.classes, options.expect_clean
        return Clean(by=by, known=known, classes=classes, trained=trained, expected=expected)

    def _gradients(self) -> Gradients | None:
        """Look for gradients that vanish, at as many images as a block has."""
        if self.threat is None:
            return None
        model, data = self.subject.model, self.subject.data
        some = spread(len(data), min(LOOKED_AT, self.options.batch_size, len(data)))
        images, labels = data.images(some).to(model.device), data.labels[some].to(model.device)
        found = self.threat.masked(model, images, labels, self.options.seed)
        return Gradients(
            images=tuple(torch.as_tensor(some).tolist()),
            lost=tuple(found.lost.tolist()),
            sentence=found.sentence,
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
        own = {i for i in range(len(sizes)) if options.takes(repeat, i, len(sizes))}
        left = {i for i in own if not journal.get(repeat, sizes[i].start)}
        if left:
            self._tell(journal, progress)  # the first block may take long
        done = set(range(len(sizes))) - left
        stream = blocks(data, options.batch_size, options.num_workers, done=done)
        for indices, images, labels in stream:
            with unbroken(kept=journal.folder is not None):
                block = self._block(repeat, indices, images, labels, defenders, progress)
                journal.put(repeat, indices.start, block)
            return_memory()
            self._tell(journal, progress)

    def _tell(self, journal: Journal, progress: Progress) -> None:
        """Say how many images are done, of all repeats."""
        step = "evaluating" if self.threat is None else f"attacking with {self.threat.label}"
        progress(step, journal.rows, self._images)

    @cached_property
    def _images(self) -> int:
        """How many images of all repeats are to be done here."""
        sizes = runs(len(self.subject.data), self.options.batch_size)
        return sum(
            len(run)
            for repeat in range(self.options.repeats)
            for i, run in enumerate(sizes)
            if self.options.takes(repeat, i, len(sizes))
        )

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
        logits = finite_logits(defenders, images)
        answers = [joint_answer(logits[:n]) for n in self.counts]
        right = (logits.argmax(-1) == labels).double()
        single = [right[:n].mean(0) for n in self.counts]
        return {kind: torch.stack(answers, 1), f"{kind}_gibbs": torch.stack(single, 1)}

    def _defenders(self, repeat: int, image: int | None = None) -> list[nn.Module]:
        return draws(
            self.subject.model, self.counts[-1], seed=self.options.seed, purpose=Purpose.DEFENDER,
            repeat=repeat, image=image,
        )  # fmt: skip


@contextlib.contextmanager
def run_folder(out: Path | None, force: bool, options: EvalOptions) -> Iterator[None]:
    """Hold the run's folder, which holds no finished run, against all other writers.

    Raises:
        RequestError: A shard has no folder, as its blocks are all that is left of it.
    """
    if options.part is not None and out is None:
        raise RequestError("`shard` needs `out`, the folder that the blocks are kept in")
    with only_writer(out, part=writer(options)):
        if out is not None:
            refuse_finished(out, force=force, gated=options.gated)
        yield


def writer(options: EvalOptions) -> str | None:
    """Return what a shard calls itself beside others that write in its folder; None for a run."""
    return None if options.part is None else f"shard-{options.part.name}"


def beginning(out: Path | None, options: EvalOptions) -> AbstractContextManager[None]:
    """Let the shards of a run claim its folder one after the other."""
    if out is None or options.part is None:
        return contextlib.nullcontext()
    return in_turn(out)


def require_whole(out: Path | None, options: EvalOptions) -> None:
    """Require, once all blocks to be done here are, that these were all there are.

    Raises:
        UnmergedError: It was a shard.
    """
    if options.part is not None:
        raise UnmergedError(
            f"shard {options.part} is done; once all {options.part.count} are, "
            f"`rlskit merge {out}` makes the result of them"
        )
