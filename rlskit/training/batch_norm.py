"""BatchNorm's running statistics, re-estimated over random plans before a model is saved.

In training every bank's statistics are moving averages over whatever neighbours each step drew;
at test time a draw needs those of the final weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from rlskit import seeds
from rlskit.data import Data, batches
from rlskit.defenses import defense_of, training_logits
from rlskit.models.banks import BankedModel
from rlskit.models.streams import kept, sources_of, start_all
from rlskit.progress import Progress, no_progress
from rlskit.seeds import Purpose
from rlskit.training.train_options import TrainOptions


@torch.no_grad()
def reestimate_batch_norm(
    model: BankedModel, data: Data, options: TrainOptions, progress: Progress = no_progress
) -> None:
    """Set the running statistics of every bank's BatchNorms to their mean over batches and plans.

    Each batch is shown to a random plan and to its M - 1 shifts, so that every layer of every bank
    is visited once per batch, among random neighbours; the members of an ensemble are shown it
    whole. Where banks are not equally likely, neighbours are not, either: but for the first batch,
    plans are those of draws. All else is in eval mode: a draw has no dropout, either.

    Args:
        model: Left in eval mode.
        data: What it was trained on.
        options: `bn_batches`, `batch_size`, `num_workers` and `seed` are used.
        progress: Told of every batch.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms or not options.bn_batches:
        return
    order = seeds.generator(options.seed, Purpose.BATCH_NORM_ORDER)
    plans = seeds.generator(options.seed, Purpose.BATCH_NORM_PLANS)
    total = min(options.bn_batches, math.ceil(len(data) / options.batch_size))
    stream = batches(data, options.batch_size, order, num_workers=options.num_workers)
    with kept(sources_of(model)), _averaging(norms):
        start_all(sources_of(model), seeds.derive(options.seed, Purpose.BATCH_NORM_NOISE))
        for done, (images, _) in zip(range(total), stream, strict=False):
            images = images.to(model.device)
            for plan in _plans(model, plans, all_banks=not done):
                training_logits(model, images, plan)
            progress("re-estimating BatchNorm", done + 1, total)


def _plans(model: BankedModel, generator: torch.Generator, *, all_banks: bool) -> Sequence[Tensor]:
    """Return the M plans that see a batch: a random one and its shifts, or M as the draws are."""
    if model.card.bank_probs and not all_banks:
        return [*defense_of(model).group(model, model.num_banks, generator)]
    first = _first_plan(model, generator)
    return [(first + shift) % model.num_banks for shift in range(model.num_banks)]


def _first_plan(model: BankedModel, generator: torch.Generator) -> Tensor:
    if defense_of(model).distinct(model):
        return torch.zeros(model.num_layers, dtype=torch.long)
    return torch.randint(model.num_banks, (model.num_layers,), generator=generator)


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let the norms, and nothing else, train: each averages all batches from now on."""
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(_train) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    try:
        yield
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            hook.remove()
            norm.momentum = momentum
            norm.eval()


def _train(norm: Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    norm.train()  # at every pass: the model may return itself to eval mode in between


def has_batch_norm(model: Module) -> bool:
    """Whether a model's training needs more than one image at a time."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
