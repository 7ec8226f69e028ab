"""One result of what the shards of a run computed, as one process would have written it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlskit.arguments import checked
from rlskit.data import runs
from rlskit.diversity.between_draws import conclude_agreement
from rlskit.diversity.kept_blocks import Compared
from rlskit.diversity.transfer import conclude_transfer
from rlskit.errors import RequestError
from rlskit.evaluation.attacking import with_worst_case
from rlskit.evaluation.basis import Basis, conclude
from rlskit.results import (
    RESULTS,
    Gathered,
    Journal,
    Result,
    claim,
    dump,
    gather,
    part_names,
    refuse_finished,
    require_all,
)
from rlskit.results.journal import request_of
from rlskit.storage.locks import only_writer, refuse_busy


@checked()
def merge(
    shards: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    force: bool = False,
    gated: bool = False,
) -> list[Result]:
    """Make the result of a run whose shards are done, without the model and its images.

    Args:
        shards: The folders that they wrote in; one where they shared it.
        out: The folder of the whole run; by default that one.
        force: Replace a finished run.
        gated: Whether a gate decides on the result; see `EvalOptions`.

    Returns:
        What the same call without `shard` would have returned, and written into `out`, but for the
        times, which are summed.

    Raises:
        RequestError: They are not of one run, or a block is not there; or `force` would remove
            them with a run that they lie in.
        RunError: A shard is still at work.
        UntrustedError: Shards say different things of the same images; or, as at the end of any
            run, the model only guesses or masks its gradients.
    """
    folders = [Path(one) for one in shards]
    if out is None and len(folders) != 1:
        raise RequestError("say with `out` where the result of several folders goes")
    out = folders[0] if out is None else Path(out)
    for folder in folders:
        refuse_busy(folder, parts=True)
        if force and out.resolve() in folder.resolve().parents:
            raise RequestError(
                f"{folder} lies in {out}, whose run `force` removes; name another `out`"
            )
    with only_writer(out):
        refuse_finished(out, force=force, gated=gated)
        names = part_names(folders)
        places = [[folder / name for folder in folders] for name in names] or [folders]
        found = [_whole(one) for one in places]
        if out in folders:
            (out / RESULTS).unlink(missing_ok=True)  # it is unfinished again, and its blocks stay
        if names:
            claim(out, request_of(folders[0]), force=force)
        below = [out / name for name in names]
        with only_writer(*below):
            return _written(found, below or [out], out, force, gated)


def _whole(folders: Sequence[Path]) -> Gathered[Any]:
    """Return all blocks of one run.

    Raises:
        RequestError: One is not there.
    """
    compared = request_of(folders[0]).get("command") == "diversity"
    gathered: Gathered[Any] = gather(folders, Compared if compared else Basis)
    facts = gathered.basis.facts
    if not compared and len(gathered.basis.index) != facts.data.n:
        raise RequestError(f"{folders[0]}: what its shards note is damaged; run them again")
    sizes = {
        (repeat, run.start): len(run)
        for run in runs(facts.data.n, facts.batch_size)
        for repeat in range(min(facts.repeats, len(gathered.blocks) + 1))
    }
    require_all(gathered, sizes, folders)
    return gathered


def _written(
    found: Sequence[Gathered[Any]],
    folders: Sequence[Path],
    out: Path,
    force: bool,
    gated: bool,
) -> list[Result]:
    """Write the runs of one attack or of several, and return their results."""
    results: list[Result] = []
    journals = []
    for one, folder in zip(found, folders, strict=True):
        journal = Journal(
            folder, one.request, force=force, below=folder != out, images=one.images.__getitem__
        )
        for (repeat, first), block in sorted(one.blocks.items()):
            if journal.get(repeat, first) is None:
                journal.put(repeat, first, block.read())
        own = _concluded(one.basis, journal, gated)
        journal.write_results(dump(own))
        results += own
        journals.append(journal)
    return with_worst_case(results, journals, out) if len(found) > 1 else results


def _concluded(basis: Basis | Compared, journal: Journal, gated: bool) -> list[Result]:
    """Do what a run ends with, and return its results.

    Raises:
        RequestError: A gate is to decide, and there is no accuracy.
    """
    if isinstance(basis, Basis):
        return conclude(basis, journal, gated=gated)
    if gated:
        raise RequestError("a gate is on an accuracy, which diversity is not; leave it out")
    ending = conclude_agreement if basis.transfer is None else conclude_transfer
    return [ending(basis, journal)]
