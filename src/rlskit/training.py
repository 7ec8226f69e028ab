"""Group optimization: K sampled models per step, trained on their mean prediction (section 3.2)."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit import checkpoint, seeds
from rlskit.data import AUGMENTATIONS, Data, batches, blocks, load, runs
from rlskit.defenses import Defense, defense_of, draws
from rlskit.errors import RequestError, RunError
from rlskit.models.banks import BankedModel
from rlskit.threat import mean_log_probabilities
from rlskit.types import Progress, no_progress

LOSSES = ("ce", "mse")
SCHEDULES = ("step", "cosine", "one-cycle")


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training; the defaults are the paper's (sections 3.2 and 4.1).

    Attributes:
        epochs: Passes over the training images; 50 for MNIST in the paper, 150 for the others.
        batch_size: Images per step.
        group_size: K, the sampled models per step.
        loss: `ce` is -log F_y of the mean prediction F, `mse` its squared distance to the one-hot
            label, summed over classes (eq. 6 and 7).
        individual: Weight w in [0, 1] of the mean of the K single losses; the group loss has 1 - w.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        schedule: `step` divides the learning rate by 10 every `step_epochs`; `cosine`; `one-cycle`.
        step_epochs: Epochs between two divisions.
        augment: One of `rlskit.data.AUGMENTATIONS`.
        amp: Compute in bfloat16 where torch's autocast does.
        holdout: Share of the training images kept to choose the best epoch by.
        bn_batches: Batches that the BatchNorm statistics are re-estimated on, over random plans.
        num_workers: Processes that decode images.
        seed: Seeds plans, order, augmentation and dropout.
    """

    epochs: int = 50
    batch_size: int = 128
    group_size: int = 3
    loss: str = "ce"
    individual: float = 0.0
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    step_epochs: int = 50
    augment: str = "none"
    amp: bool = False
    holdout: float = 0.05
    bn_batches: int = 50
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "group_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise RequestError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "bn_batches", "num_workers"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{_flag(name)} must be at least 0, not {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RequestError(f"--lr must be a positive number, not {self.lr}")
        if not 0 <= self.individual <= 1:
            raise RequestError(f"--individual is a weight in [0, 1], not {self.individual}")
        if not 0 <= self.holdout < 1:
            raise RequestError(f"--holdout is a share in [0, 1), not {self.holdout}")
        known = (("loss", LOSSES), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS))
        for name, values in known:
            if getattr(self, name) not in values:
                raise RequestError(
                    f"{_flag(name)} {getattr(self, name)!r} is unknown; "
                    f"it is one of {', '.join(values)}"
                )


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log: means over the epoch's steps, and the held-out accuracy."""

    epoch: int
    steps: int
    loss: float
    accuracy: float
    holdout_accuracy: float | None
    lr: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        epochs: One record per epoch.
        steps: Gradient steps in all.
        best_epoch: The epoch of the best held-out accuracy, or the last one without a holdout.
        last: File with the weights of the last epoch, if files were written.
        best: File with those of the best epoch, likewise.
        log: File with the records as JSON lines, likewise.
    """

    epochs: tuple[EpochRecord, ...]
    steps: int
    best_epoch: int
    last: Path | None = None
    best: Path | None = None
    log: Path | None = None


def train(
    model: BankedModel,
    data: str | Data | None = None,
    *,
    options: TrainOptions | None = None,
    out: str | Path | None = None,
    progress: Progress = no_progress,
    **fields: Any,
) -> TrainingResult:
    """Train a model in place, on the device it is on, the way its defense is trained.

    Args:
        model: From `convert` or `load`.
        data: A `--data` name, or a training split from `load_data`; by default what the model was
            made for.
        options: How to train.
        out: Checkpoint to write after each epoch. The best epoch's stands beside it as
            `NAME.best.safetensors`, the log as `NAME.train.jsonl`.
        progress: Told of every step.
        **fields: Fields of `TrainOptions`, in place of `options`.

    Raises:
        RequestError: An option or the data is wrong.
        RunError: The loss is not finite; files keep the last good epoch.
    """
    settings = options or TrainOptions(**fields)
    whole = _training_data(model, data)
    images, held_out = _split(whole, settings)
    run = _Run(model, settings, images, held_out, Path(out) if out is not None else None, whole)
    return run.go(progress)


def group_loss(logits: Tensor, labels: Tensor, loss: str = "ce", individual: float = 0.0) -> Tensor:
    """Return the loss of a group's mean prediction F = (1/K) sum_k softmax f_k (section 3.2).

    Args:
        logits: `[K, B, classes]`, one slice per sampled model.
        labels: `[B]`.
        loss: `ce` or `mse`, as in `TrainOptions`.
        individual: Weight of the mean of the K single losses.

    Returns:
        A scalar, mean over images.
    """
    together = _loss(mean_log_probabilities(logits), labels, loss)
    if not individual:
        return together
    alone = torch.stack([_loss(one.log_softmax(-1), labels, loss) for one in logits]).mean()
    return (1 - individual) * together + individual * alone


def separate_loss(logits: Tensor, labels: Tensor, loss: str = "ce") -> Tensor:
    """Return the sum of the members' own losses: each is trained as if it were alone."""
    return torch.stack([_loss(one.log_softmax(-1), labels, loss) for one in logits]).sum()


@torch.no_grad()
def reestimate_batch_norm(
    model: BankedModel, data: Data, options: TrainOptions, progress: Progress = no_progress
) -> None:
    """Set the running statistics of every bank's BatchNorms to their mean over random plans.

    Each batch is shown to a random plan and to its M - 1 shifts, so that every layer of every bank
    is visited once per batch, among random neighbours.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms or not options.bn_batches:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    order = seeds.generator(options.seed, "batch-norm-order")
    plans = seeds.generator(options.seed, "batch-norm-plans")
    total = min(options.bn_batches, math.ceil(len(data) / options.batch_size))
    stream = batches(data, options.batch_size, order, num_workers=options.num_workers)
    for done, (images, _) in zip(range(total), stream, strict=False):
        plan = torch.randint(model.num_banks, (model.num_layers,), generator=plans)
        for shift in range(model.num_banks):
            model(images.to(model.device), (plan + shift) % model.num_banks)
        progress("re-estimating BatchNorm", done + 1, total)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


class _Run:
    """One training run: its optimizer, files and records."""

    def __init__(
        self,
        model: BankedModel,
        options: TrainOptions,
        data: Data,
        held_out: Data | None,
        out: Path | None,
        whole: Data,
    ) -> None:
        self.model, self.options, self.data, self.held_out = model, options, data, held_out
        self.defense: Defense = defense_of(model)
        self.steps_per_epoch = len(runs(len(data), options.batch_size))
        if options.batch_size > 1 and len(data) % options.batch_size == 1:
            self.steps_per_epoch -= 1  # a last batch of one image is left out
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.scheduler = _scheduler(self.optimizer, options, self.steps_per_epoch)
        self.out = out
        self.records: list[EpochRecord] = []
        self.before = list(model.card.training)
        self.whole = whole
        self.best_epoch = 0
        if out is not None and not out.parent.is_dir():
            raise RequestError(f"there is no folder {out.parent} to write {out.name} in")

    def go(self, progress: Progress) -> TrainingResult:
        log = self._beside(".train.jsonl")
        with torch.random.fork_rng(devices=_cuda_devices(self.model)), _opened(log) as lines:
            for epoch in range(self.options.epochs):
                self._epoch(epoch, progress)
                self._keep(lines)
        self.model.eval()
        return TrainingResult(
            epochs=tuple(self.records),
            steps=self.steps_per_epoch * len(self.records),
            best_epoch=self.best_epoch,
            last=self.out,
            best=self._beside(".best.safetensors"),
            log=log,
        )

    def _epoch(self, epoch: int, progress: Progress) -> None:
        model, options = self.model, self.options
        torch.manual_seed(seeds.derive(options.seed, "train-noise", epoch))  # dropout, drop path
        plans = seeds.generator(options.seed, "train-plans", epoch)
        order = seeds.generator(options.seed, "train-order", epoch)
        stream = batches(
            self.data, options.batch_size, order, augment=options.augment,
            num_workers=options.num_workers,
        )  # fmt: skip
        lr = self.optimizer.param_groups[0]["lr"]
        loss_sum = correct = seen = 0.0
        start = time.perf_counter()
        model.train()
        for step, (images, labels) in enumerate(stream):
            images, labels = images.to(model.device), labels.to(model.device)
            logits, loss = self._step(images, labels, plans)
            if not math.isfinite(value := loss.item()):
                raise RunError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}; "
                    f"{self._kept(epoch)}; a smaller --lr may help"
                )
            seen += len(labels)
            loss_sum += value * len(labels)
            correct += (mean_log_probabilities(logits).argmax(-1) == labels).sum().item()
            progress(
                f"epoch {epoch + 1}/{options.epochs}", step + 1, self.steps_per_epoch,
                loss=loss_sum / seen, accuracy=correct / seen,
                images_per_second=seen / (time.perf_counter() - start),
            )  # fmt: skip
        seconds = time.perf_counter() - start
        reestimate_batch_norm(model, self.data, options, progress)
        model.eval()
        self.records.append(
            EpochRecord(
                epoch=epoch + 1,
                steps=self.steps_per_epoch,
                loss=loss_sum / seen,
                accuracy=correct / seen,
                holdout_accuracy=self._held_out_accuracy(),
                lr=lr,
                seconds=seconds,
                images_per_second=seen / seconds,
            )
        )

    def _step(
        self, images: Tensor, labels: Tensor, plans: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Take one gradient step; return the group's detached logits `[K, B, classes]` and loss."""
        options = self.options
        group = self.defense.group(self.model, options.group_size, plans)
        self.optimizer.zero_grad(set_to_none=True)  # or momentum and decay would move idle banks
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=options.amp):
            logits = torch.stack([self.model(images, plan) for plan in group]).float()
        if self.defense.separate:
            loss = separate_loss(logits, labels, options.loss)
        else:
            loss = group_loss(logits, labels, options.loss, options.individual)
        if loss.isfinite():
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step()
        return logits.detach(), loss.detach()

    @torch.no_grad()
    def _held_out_accuracy(self) -> float | None:
        if self.held_out is None:
            return None
        members = draws(
            self.model, self.defense.samples(self.model), seed=self.options.seed, purpose="holdout"
        )
        right = 0
        for _, images, labels in blocks(self.held_out, self.options.batch_size):
            images = images.to(self.model.device)
            answer = mean_log_probabilities(torch.stack([member(images) for member in members]))
            right += int((answer.argmax(-1).cpu() == labels).sum())
        return right / len(self.held_out)

    def _keep(self, lines: TextIO | None) -> None:
        """Note the epoch in the model's card; write the log's line, the last and best weights."""
        record = self.records[-1]
        self.model.card.data = self.whole.name
        self.model.card.training = [*self.before, self._training_record()]
        best = max(self.records, key=lambda r: (r.holdout_accuracy or 0.0, r.epoch))
        self.best_epoch = best.epoch
        if lines is not None:
            lines.write(json.dumps(asdict(record)) + "\n")
            lines.flush()
        if self.out is not None:
            checkpoint.save(self.model, self.out, force=True)
            if best is record:
                checkpoint.save(self.model, self._best_file(), force=True)

    def _training_record(self) -> dict[str, Any]:
        last = self.records[-1]
        return {
            "data": self.whole.name,
            "data_sha256": self.whole.sha256,
            "images": len(self.data),
            "epochs": last.epoch,
            "steps": self.steps_per_epoch * last.epoch,
            "loss": last.loss,
            "accuracy": last.accuracy,
            "holdout_accuracy": last.holdout_accuracy,
            "options": asdict(self.options),
        }

    def _kept(self, epoch: int) -> str:
        if self.out is None:
            return "the model in memory is of no use any more"
        return f"{self.out} keeps epoch {epoch}" if epoch else f"{self.out} was not written"

    def _beside(self, suffix: str) -> Path | None:
        return (
            None if self.out is None else self.out.with_suffix("").with_name(self.out.stem + suffix)
        )

    def _best_file(self) -> Path:
        best = self._beside(".best.safetensors")
        assert best is not None
        return best


def _training_data(model: BankedModel, data: str | Data | None) -> Data:
    if not isinstance(data, Data):
        data = load(data or model.card.default_data(), "train")
    return data.adapted(model.card.pixels, model.card.classes)


def _split(data: Data, options: TrainOptions) -> tuple[Data, Data | None]:
    """Keep a random share of the training images to choose the best epoch by."""
    held = round(len(data) * options.holdout)
    if not held or len(data) - held < 2:
        return data, None
    order = torch.randperm(len(data), generator=seeds.generator(options.seed, "holdout"))
    return data.subset(order[held:].sort().values), data.subset(order[:held].sort().values)


def _loss(log_probabilities: Tensor, labels: Tensor, loss: str) -> Tensor:
    if loss == "ce":
        return F.nll_loss(log_probabilities, labels)
    one_hot = F.one_hot(labels, log_probabilities.shape[-1])
    return (log_probabilities.exp() - one_hot).square().sum(-1).mean()


def _scheduler(
    optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = options.epochs * steps_per_epoch
    if options.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, options.step_epochs * steps_per_epoch)
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total + 1)


def _opened(path: Path | None) -> Any:
    return contextlib.nullcontext() if path is None else path.open("w", encoding="utf-8")


def _cuda_devices(model: BankedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
