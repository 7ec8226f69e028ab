"""Accuracy of the mean of N draws on clean images, or on saved adversarial ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from rlskit.arguments import checked
from rlskit.evaluation.eval_options import OPTION_NAMES, EvalOptions
from rlskit.evaluation.run import Run, beginning, require_whole, run_folder
from rlskit.evaluation.subject import subject_of
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.progress import Progress, no_progress
from rlskit.results import Result, dump


@checked(*OPTION_NAMES)
def evaluate(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    adversarial: str | Path | None = None,
    options: EvalOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    **fields: Any,
) -> list[Result]:
    """Score the mean of N draws on clean images, or on saved adversarial ones.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        adversarial: A file that an attack saved; its images take the place of the data, which may
            be given as the clean images that they were made from.
        options: Draws, repeats, block size, seed. With several N the draws nest, so that the
            largest N costs all.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        progress: Told of every block.
        **fields: Fields of `EvalOptions`; they go before those of `options`.

    Returns:
        One result per N, ascending.

    Raises:
        RequestError: An option, the data or a file is wrong.
        UntrustedError: The weights or logits are not finite, or the model only guesses.
    """
    options = dataclasses.replace(options or EvalOptions(), **fields)
    out = None if out is None else Path(out)
    model, data = taken(model, data)
    with run_folder(out, force, options):
        run = Run(subject_of(model, data, adversarial), options)
        run.preflight()
        run.look()
        with beginning(out, options):
            journal = run.journal(out, force=force)
        results = run.finish(journal, progress)
        require_whole(out, options)
        journal.write_results(dump(results))
    return results
