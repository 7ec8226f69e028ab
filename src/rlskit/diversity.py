"""Diversity of a model's draws: interrater agreement and its relatives (section 4.5)."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlskit import checkpoint
from rlskit.adversarial import read_adversarial
from rlskit.agreement import Agreement, agreement
from rlskit.data import Data, blocks
from rlskit.defenses import draws
from rlskit.errors import RequestError
from rlskit.evaluation import (
    EvalOptions,
    data_json,
    evaluation_data,
    library_versions,
    model_json,
    warnings_about,
)
from rlskit.models.banks import BankedModel
from rlskit.preflight import check_weights
from rlskit.results import Result
from rlskit.stats import accuracy
from rlskit.types import Progress, no_progress

DRAWS, REPEATS = 10, 10
"""The paper's: 10 samples, repeated 10 times."""

_MEASURES = ("kappa", "disagreement", "double_fault", "q_statistic")


@torch.no_grad()
def diversity(
    model: BankedModel,
    data: str | Data | None = None,
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
        model: From `convert` or `load`, on the device to use.
        data: A `--data` name, or data from `load_data`; by default what the model was made for.
        adversarial: A file that an attack saved; its images take the place of the data.
        n_samples: Draws per repeat, at least 2.
        repeats: Sets of fresh draws.
        batch_size: Images per block.
        num_workers: Threads that decode images.
        seed: All randomness derives from it.
        progress: Told of every block.

    Returns:
        A result whose `agreement` holds kappa, disagreement, double fault and Q statistic (Kuncheva
        & Whitaker 2003), each with mean and std over the repeats.

    Raises:
        RequestError: An option or the data is wrong.
        UntrustedError: The weights are not finite.
    """
    if n_samples < 2:
        raise RequestError(
            f"diversity compares draws: --n-samples must be 2 or more, not {n_samples}"
        )
    options = EvalOptions(n_samples, repeats, batch_size, num_workers, seed)
    check_weights(model)
    images = evaluation_data(model, data)
    protocol = "clean"
    if adversarial is not None:
        saved = read_adversarial(adversarial, model.card)
        images, protocol = saved.data, saved.about["protocol"]
    start = time.perf_counter()
    found: list[Agreement] = []
    for repeat in range(repeats):
        correct = _correct(model, images, options, repeat, progress)
        found.append(agreement(correct))
    seconds = time.perf_counter() - start
    n = len(images)
    name = "clean_gibbs" if adversarial is None else "robust_gibbs"
    return Result(
        command="diversity",
        checkpoint={
            "path": model.path,
            "sha256": checkpoint.fingerprint(checkpoint.stored_tensors(model)),
        },
        model=model_json(model),
        defense=model.card.defense,
        data=data_json(images),
        protocol=protocol,
        n_samples=n_samples,
        repeats=repeats,
        seed=seed,
        batch_size=batch_size,
        device=model.device.type,
        versions=library_versions(),
        accuracy={name: accuracy([a.mean_accuracy for a in found], n).to_json()},
        agreement={name: _summary([getattr(a, name) for a in found]) for name in _MEASURES},
        timing={
            "seconds": seconds,
            "images_per_second": n * repeats / seconds,
            "forwards": float(n * n_samples * repeats),
            "backwards": 0.0,
        },
        warnings=(*warnings_about(model, images), *_undefined(found)),
    )


def _correct(
    model: BankedModel, data: Data, options: EvalOptions, repeat: int, progress: Progress
) -> Tensor:
    """Return whether draw t is right on image j, bool `[T, n]`."""
    members = draws(
        model, options.counts(model)[-1], seed=options.seed, purpose="diversity", repeat=repeat
    )
    columns = []
    for indices, images, labels in blocks(data, options.batch_size, options.num_workers):
        on_device, wanted = images.to(model.device), labels.to(model.device)
        answers = torch.stack([member(on_device).argmax(-1) for member in members])
        columns.append((answers == wanted).cpu())
        done = repeat * len(data) + indices.stop
        progress("measuring diversity", done, options.repeats * len(data))
    return torch.cat(columns, dim=1)


def _summary(values: list[float]) -> dict[str, Any]:
    """Return mean and standard deviation over the repeats; NaN where one of them is undefined."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _undefined(found: list[Agreement]) -> tuple[str, ...]:
    reasons = sorted({a.undefined for a in found if a.undefined})
    return tuple(f"Undefined: {reason}." for reason in reasons)
