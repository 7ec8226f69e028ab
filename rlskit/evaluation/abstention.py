"""What it is worth not to answer where the draws disagree, also under who knows that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlskit import seeds
from rlskit.arguments import checked
from rlskit.data import Data, blocks
from rlskit.defenses import defense_of, draws
from rlskit.errors import RequestError
from rlskit.evaluation.eval_options import OPTION_NAMES, EvalOptions
from rlskit.evaluation.run import Run, beginning, require_whole, run_folder
from rlskit.evaluation.subject import Subject, subject_of
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.progress import Progress, no_progress
from rlskit.results import Result, dump
from rlskit.seeds import Purpose
from rlskit.stats import conformal_threshold
from rlskit.threat.evading import answered, prepare_evading


@checked(*OPTION_NAMES)
def measure_abstention(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    abstain: float = 0.05,
    eps: float | str,
    norm: str = "linf",
    steps: int = 50,
    n_attacked: int = 10,
    options: EvalOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    **fields: Any,
) -> Result:
    """Measure what a defense gains by not answering where its draws disagree.

    The disagreement is the mutual information of the N draws that answer. Its threshold is set on
    a random half of the images, as they are; the other half is scored: as it is, under PGD on one
    draw, and under an attacker who knows the threshold and lowers the disagreement, too
    (`rlskit.threat.evading`).

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        abstain: Share of clean images that may be left unanswered.
        eps: The attackers' budget, in [0, 1] units.
        norm: Of it, `linf` or `l2`.
        steps: Of PGD.
        n_attacked: Draws at every step of the attacker who evades; all of them where they are few.
        options: Draws, repeats, block size, seed; one N only.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        progress: Told of every block.
        **fields: Fields of `EvalOptions`; they go before those of `options`.

    Returns:
        A result about the scored half under that attacker, whose `abstention` has all the rest.

    Raises:
        RequestError: An option, the data or the folder is wrong, or the defense has but one draw.
        UntrustedError: The preflight failed, or the model only guesses.
    """
    options = dataclasses.replace(options or EvalOptions(), **fields)
    model, data = taken(model, data)
    n_samples = _several(model, options)
    _check_request(abstain, norm)
    out = None if out is None else Path(out)
    with run_folder(out, force, options):
        subject, held_out = _halves(subject_of(model, data), options.seed)
        if subject.data.order is not None:
            raise RequestError("abstaining knows no images in random order; leave `shuffle` out")
        thresholds = tuple(
            conformal_threshold(_disagreement(model, held_out, options, n_samples, one), abstain)
            for one in range(options.repeats)
        )
        threat = prepare_evading(
            model, eps=eps, norm=norm, steps=steps, n_attacked=n_attacked, n_samples=n_samples,
            abstain=abstain, held_out=held_out.sha256, held_out_images=len(held_out),
            thresholds=thresholds,
        )  # fmt: skip
        run = Run(subject, options, threat)
        run.preflight()
        run.look()
        with beginning(out, options):
            journal = run.journal(out, force=force)
        results = run.finish(journal, progress)
        require_whole(out, options)
        journal.write_results(dump(results))
    return results[0]


def _several(model: BankedModel, options: EvalOptions) -> int:
    """Return N.

    Raises:
        RequestError: It is not one number, or no draws can disagree.
    """
    counts = options.counts(model)
    if len(counts) > 1:
        raise RequestError("`abstain` takes one `n_samples`, not several")
    if 1 in (counts[0], defense_of(model).distinct(model)):
        raise RequestError(
            f"`abstain` needs draws that can disagree: this {model.card.defense} answers with one"
        )
    return counts[0]


def _check_request(abstain: float, norm: str) -> None:
    if not 0 < abstain < 1:
        raise RequestError(
            f"`abstain` is the share of clean images that may go unanswered, such as 0.05, not "
            f"{abstain:g}"
        )
    if norm not in ("linf", "l2"):
        raise RequestError(f"`norm` {norm!r} is unknown to `abstain`; it is linf or l2")


def _halves(subject: Subject, seed: int) -> tuple[Subject, Data]:
    """Return the subject with the half of its images that is scored, and the other half.

    Raises:
        RequestError: There are fewer than two images.
    """
    data = subject.data
    if len(data) < 2:
        raise RequestError("`abstain` needs images for its threshold and others to score")
    order = torch.randperm(len(data), generator=seeds.generator(seed, Purpose.THRESHOLD))
    held_out, scored = (
        data.subset(part.sort().values) for part in order.tensor_split([len(data) // 2])
    )
    return dataclasses.replace(subject, data=scored, clean=scored), held_out


@torch.no_grad()
def _disagreement(
    model: BankedModel, data: Data, options: EvalOptions, n_samples: int, repeat: int
) -> list[float]:
    """Return the disagreement of a repeat's defenders on each image as it is."""
    found: list[float] = []
    for indices, images, _ in blocks(data, options.batch_size, options.num_workers):
        images = images.to(model.device)
        for part, image in _parts(indices, options.per_example):
            defenders = draws(
                model, n_samples, seed=options.seed, purpose=Purpose.DEFENDER, repeat=repeat,
                image=image,
            )  # fmt: skip
            found += answered(defenders, images[part])[1].tolist()
    return found


def _parts(indices: range, per_example: bool) -> list[tuple[slice, int | None]]:
    """Return the images of a block that share their draws, and the index of a lone one."""
    if not per_example:
        return [(slice(None), None)]
    return [(slice(place, place + 1), index) for place, index in enumerate(indices)]
