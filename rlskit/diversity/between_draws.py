"""Diversity of a model's draws: interrater agreement and its relatives (section 4.5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.arguments import checked
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits
from rlskit.diversity.agreement import Agreement, Intervals, agreement, intervals
from rlskit.diversity.comparable import comparing
from rlskit.diversity.kept_blocks import Compared, Work, common, compared, finished
from rlskit.evaluation import doubts_of, subject_of
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.progress import Progress, no_progress
from rlskit.results import Journal
from rlskit.results.result import Measure, Result
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
    shard: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
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
        shard: See `EvalOptions`.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace a finished run that the folder holds.
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
        num_workers=num_workers, seed=seed, shard=shard,
    )  # fmt: skip
    subject = subject_of(model, data, adversarial)
    basis = compared(subject, options, doubts_of(subject, options))

    def begin(repeat: int) -> Work:
        return _work(model, basis.count, seed, repeat)

    return finished(
        subject, options, basis, begin, conclude_agreement, step="measuring diversity",
        request={}, out=None if out is None else Path(out), force=force, progress=progress,
    )  # fmt: skip


def _work(model: BankedModel, count: int, seed: int, repeat: int) -> Work:
    """Return what says whether draw t is right on image j, bool `[B, T]`."""
    members = draws(model, count, seed=seed, purpose=Purpose.DIVERSITY, repeat=repeat)

    @torch.no_grad()
    def right(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        answers = finite_logits(members, images).argmax(-1)
        passes = torch.tensor([len(images) * count])
        return {
            "right": (answers == labels).T, "forwards": passes, "backwards": torch.tensor([0])
        }  # fmt: skip

    return right


def conclude_agreement(basis: Compared, journal: Journal) -> Result:
    """Return the result of a run whose blocks are all there."""
    facts = basis.facts
    correct = [journal.column("right", repeat).T for repeat in range(facts.repeats)]
    found = [agreement(one) for one in correct]
    resampling = np.random.default_rng(seeds.derive(facts.seed, Purpose.BOOTSTRAP))
    spans = intervals(correct, resampling)
    name = "robust_gibbs" if basis.saved else "clean_gibbs"
    return Result(
        **common(basis, journal),
        accuracy={name: accuracy([a.mean_accuracy for a in found], facts.data.n)},
        agreement={name: _measure(name, found, spans) for name in _MEASURES},
        warnings=basis.warnings + _undefined(found) + basis.doubts,
    )


def _measure(name: str, found: list[Agreement], spans: Intervals) -> Measure:
    """Return a measure over the repeats, with its interval where it has one."""
    over = spread([getattr(one, name) for one in found])
    return Measure(mean=over.mean, std=over.std, ci95=getattr(spans, name, None))


def _undefined(found: list[Agreement]) -> tuple[str, ...]:
    reasons = sorted({a.undefined for a in found if a.undefined})
    return tuple(f"Undefined: {reason}." for reason in reasons)
