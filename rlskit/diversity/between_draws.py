"""Diversity of a model's draws: interrater agreement and its relatives (section 4.5)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.arguments import checked
from rlskit.data import blocks
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits
from rlskit.diversity.agreement import Agreement, Intervals, agreement, intervals
from rlskit.diversity.comparable import comparing
from rlskit.evaluation import EvalOptions, Subject, doubts_of, subject_of
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.progress import Progress, no_progress
from rlskit.results.result import Measure, Result, Timing
from rlskit.seeds import Purpose
from rlskit.stats import accuracy, spread

DRAWS, REPEATS = 10, 10
"""The paper's: 10 samples, repeated 10 times."""

_MEASURES = ("kappa", "disagreement", "double_fault", "q_statistic")


@checked()
def measure_diversity(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    adversarial: str | Path | None = None,
    n_samples: int = DRAWS,
    repeats: int = REPEATS,
    batch_size: int = 128,
    num_workers: int = 0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Result:
    """Measure how much N draws agree on which images they get right.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        adversarial: A file that an attack saved; its images take the place of the data.
        n_samples: Draws per repeat, at least 2. A defense with fewer draws than that, such as an
            ensemble of M networks, is measured on each of them once: a network that met itself
            would only raise the agreement.
        repeats: Sets of fresh draws.
        batch_size: Images per block.
        num_workers: Threads that decode images.
        seed: All randomness derives from it.
        progress: Told of every block.

    Returns:
        A result whose `agreement` holds kappa, disagreement, double fault and Q statistic (Kuncheva
        & Whitaker 2003), each with mean and std over the repeats; None where it is undefined in one
        of them, and a warning that says why. All but the Q statistic have as `ci95` the bootstrap's
        95 % interval of that mean over images; None where too many resamples leave it undefined.

    Raises:
        RequestError: An option or the data is wrong.
        UntrustedError: The weights or logits are not finite, or the model only guesses.
    """
    model, data = taken(model, data)
    options = comparing(
        model, "diversity compares", n_samples, repeats=repeats, batch_size=batch_size,
        num_workers=num_workers, seed=seed,
    )  # fmt: skip
    (count,) = options.counts(model)
    subject = subject_of(model, data, adversarial)
    doubts = doubts_of(subject, options)
    start = time.perf_counter()
    correct = [_correct(subject, options, count, repeat, progress) for repeat in range(repeats)]
    seconds = time.perf_counter() - start
    resampling = np.random.default_rng(seeds.derive(seed, Purpose.BOOTSTRAP))
    found = [agreement(one) for one in correct]
    result = _result(subject, options, count, found, intervals(correct, resampling), seconds)
    return dataclasses.replace(result, warnings=result.warnings + doubts)


@torch.no_grad()
def _correct(
    subject: Subject, options: EvalOptions, count: int, repeat: int, progress: Progress
) -> Tensor:
    """Return whether draw t is right on image j, bool `[T, n]`."""
    model, data = subject.model, subject.data
    members = draws(model, count, seed=options.seed, purpose=Purpose.DIVERSITY, repeat=repeat)
    columns = []
    progress("measuring diversity", repeat * len(data), options.repeats * len(data))
    for indices, images, labels in blocks(data, options.batch_size, options.num_workers):
        answers = finite_logits(members, images.to(model.device)).argmax(-1)
        columns.append(answers.cpu() == labels)
        done = repeat * len(data) + indices.stop
        progress("measuring diversity", done, options.repeats * len(data))
    return torch.cat(columns, dim=1)


def _result(
    subject: Subject,
    options: EvalOptions,
    count: int,
    found: list[Agreement],
    spans: Intervals,
    seconds: float,
) -> Result:
    facts, n = subject.facts(), len(subject.data)
    facts["warnings"] += _undefined(found)
    name = "clean_gibbs" if subject.saved is None else "robust_gibbs"
    return Result(
        **facts,
        command="diversity",
        n_samples=count,
        repeats=options.repeats,
        seed=options.seed,
        batch_size=options.batch_size,
        accuracy={name: accuracy([a.mean_accuracy for a in found], n)},
        agreement={name: _measure(name, found, spans) for name in _MEASURES},
        timing=Timing(
            images_per_second=n * options.repeats / seconds,
            seconds=seconds,
            forwards=float(n * count * options.repeats),
            backwards=0.0,
        ),
    )


def _measure(name: str, found: list[Agreement], spans: Intervals) -> Measure:
    """Return a measure over the repeats, with its interval where it has one."""
    over = spread([getattr(one, name) for one in found])
    return Measure(mean=over.mean, std=over.std, ci95=getattr(spans, name, None))


def _undefined(found: list[Agreement]) -> tuple[str, ...]:
    reasons = sorted({a.undefined for a in found if a.undefined})
    return tuple(f"Undefined: {reason}." for reason in reasons)
