"""Comparing draws block by block, so that a run goes on where it ended, and may be shared out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from rlskit.data import blocks, runs
from rlskit.documents import Count
from rlskit.evaluation import EvalOptions, Subject
from rlskit.evaluation.basis import Facts
from rlskit.evaluation.run import beginning, require_whole, run_folder
from rlskit.progress import Progress
from rlskit.results import Journal, Result, dump, note_shard, summary
from rlskit.results.result import AttackFacts
from rlskit.runtime.interruptions import unbroken

Work = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Images and labels of a block, on the model's device -> its columns and passes."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared, and on what; all that the end of the run needs beside its blocks.

    Attributes:
        facts: Of the result.
        warnings: What a reader must know of the model and the images.
        doubts: What he must know of what the model knows.
        count: Draws.
        saved: Whether saved adversarial images take the place of the data.
    """

    facts: Facts
    warnings: tuple[str, ...]
    doubts: tuple[str, ...]
    count: Count
    saved: bool

    @property
    def transfer(self) -> AttackFacts | None:
        """The attack on each draw; None where only answers are compared."""
        return None if self.saved else self.facts.attack


def compared(
    subject: Subject,
    options: EvalOptions,
    doubts: tuple[str, ...],
    more: dict[str, Any] | None = None,
) -> Compared:
    """Return what is compared.

    Args:
        subject: The model and its images.
        options: Draws, repeats, block size, seed.
        doubts: What is to be said of what the model knows.
        more: What an attack changes of the facts.
    """
    facts = subject.facts() | (more or {})
    warnings = facts.pop("warnings")
    return Compared(
        facts=Facts(
            **facts, command="diversity", repeats=options.repeats, seed=options.seed,
            batch_size=options.batch_size, per_example=False,
        ),
        warnings=warnings,
        doubts=doubts,
        count=options.counts(subject.model)[0],
        saved=subject.saved is not None,
    )  # fmt: skip


def finished(
    subject: Subject,
    options: EvalOptions,
    basis: Compared,
    begin: Callable[[int], Work],
    conclude: Callable[[Compared, Journal], Result],
    *,
    step: str,
    request: dict[str, Any],
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Result:
    """Do every block that is not there yet, and return the result.

    Args:
        subject: The model and its images.
        options: Draws, repeats, block size, seed, shard.
        basis: Of the end.
        begin: Repeat -> the work on its blocks; asked where one is left to do.
        conclude: Makes the result.
        step: What is done, for people.
        request: What decides the numbers, beside model, images and options.
        out: The run's folder.
        force: Replace a finished run.
        progress: Told of every block.

    Raises:
        UnmergedError: A shard did its blocks.
    """
    data = subject.data
    asked = {
        **subject.identity(), **options.request(subject.model), "command": "diversity",
        "threads": torch.get_num_threads(), **request,
    }  # fmt: skip
    sizes = runs(len(data), options.batch_size)
    own = [
        (repeat, i)
        for repeat in range(options.repeats)
        for i in range(len(sizes))
        if options.takes(repeat, i, len(sizes))
    ]
    with ExitStack() as held:
        held.enter_context(run_folder(out, force, options))
        with beginning(out, options):
            journal = Journal(out, asked, force=force)
        total = sum(len(sizes[i]) for _, i in own)
        for repeat in range(options.repeats):
            left = {i for r, i in own if r == repeat and not journal.get(r, sizes[i].start)}
            if not left:
                continue
            progress(step, journal.rows, total)  # the first block may take long
            work, done = begin(repeat), set(range(len(sizes))) - left
            stream = blocks(data, options.batch_size, options.num_workers, done=done)
            for indices, images, labels in stream:
                with unbroken(kept=out is not None):
                    start = perf_counter()
                    device = subject.model.device
                    block = work(images.to(device), labels.to(device))
                    block = {name: column.cpu() for name, column in block.items()}
                    block["index"] = torch.arange(indices.start, indices.stop)
                    block["seconds"] = torch.tensor([perf_counter() - start], dtype=torch.float64)
                    journal.put(repeat, indices.start, block)
                progress(step, journal.rows, total)
        if options.part is not None:
            note_shard(journal, options.part, asked, basis)
        require_whole(out, options)
        result = conclude(basis, journal)
        journal.write_results(dump([result]))
        return result


def common(basis: Compared, journal: Journal) -> dict[str, Any]:
    """Return the fields of a result that do not depend on what is compared."""
    return {
        **vars(basis.facts), "n_samples": basis.count, "timing": summary.timing([journal])
    }  # fmt: skip
