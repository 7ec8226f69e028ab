"""One training run: epochs of gradient steps, each epoch checked, scored and kept."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlskit import seeds
from rlskit.data import MEMORY, Data, batches, blocks, runs
from rlskit.defenses import defense_of, draws, training_logits
from rlskit.defenses.answers import joint_answer
from rlskit.errors import RequestError, RlskitError, RunError, of_memory, reason
from rlskit.models.banks import BankedModel
from rlskit.models.layout import layout_of, to_layout
from rlskit.models.streams import (
    Source,
    kept,
    numbers_of,
    put_states,
    sources_of,
    start_all,
    states_of,
    torch_source,
)
from rlskit.progress import Progress
from rlskit.runtime.interruptions import Interruptions
from rlskit.runtime.together import ALONE, Ranks
from rlskit.seeds import Purpose
from rlskit.training.adversarial_training import pgd_images
from rlskit.training.batch_norm import has_batch_norm, reestimate_batch_norm
from rlskit.training.kept import EpochRecord, Files, TrainingResult
from rlskit.training.objectives import group_loss, separate_loss
from rlskit.training.ranks import Share, add_gradients, share_buffers
from rlskit.training.train_options import TrainOptions
from rlskit.training.unfinished import SaveEvery, State, Tally, Unfinished

HELD_OUT_DRAWS = 10
"""At most so many answer together when an epoch is scored."""

UNSEEN_STEPS = 20
"""At most so many are taken on an accelerator before their losses are read, which waits for it."""


class Run:
    """One training run: its optimizer, files and records.

    Args:
        model: Trained in place.
        options: How.
        whole: All training images.
        files: Where the epochs are kept.
        every: How often what it goes on from is kept within an epoch.
        ranks: The processes that share each batch.

    Raises:
        RequestError: There are too few images for a step, or an interrupted training is in the way.
    """

    def __init__(
        self,
        model: BankedModel,
        options: TrainOptions,
        whole: Data,
        files: Files,
        every: SaveEvery | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.options, self.whole, self.files = model, options, whole, files
        self.ranks = ranks
        self.data, self.held_out = split(whole, options)
        self.defense = defense_of(model)
        self.objective = objective(model, options)
        if options.batch_size == 1 and has_batch_norm(model):
            raise RequestError("`batch_size=1` is too small: BatchNorm needs at least 2 images")
        if ranks.many and options.batch_size < 2 * ranks.shard.count:
            raise RequestError(
                f"`batch_size={options.batch_size}` is too small for {ranks.shard.count} "
                "processes: it is shared by them, and each needs at least 2 images"
            )
        self.steps_per_epoch = _steps_per_epoch(len(self.data), options.batch_size)
        self.trained = [one for one in model.parameters() if one.requires_grad]
        if not self.trained:
            raise RequestError(
                f"{model.card.architecture.label} freezes all its weights (requires_grad is "
                "False), so there is nothing to train"
            )
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.scheduler = scheduler(self.optimizer, options, self.steps_per_epoch)
        self.records: list[EpochRecord] = []
        self.most_unseen = 1 if model.device.type == "cpu" else UNSEEN_STEPS
        self.unfinished = Unfinished(model, options, whole, files, every or SaveEvery(), ranks)
        self.before = list(model.card.training)

    def go(
        self, progress: Progress, note: Callable[[str], None] = lambda _: None
    ) -> TrainingResult:
        """Train all epochs that are left.

        The model is left in eval mode, the global random state as it was.
        """
        # Convolutions train faster so: ResNets by a quarter on a CPU, by half together with --amp.
        to_layout(self.model, layout_of(self.model, training=True))
        try:
            with kept(sources_of(self.model)):
                tally = self._begin(note)
                while tally.epoch < self.options.epochs:
                    self._epoch(tally, progress)
                    tally = Tally(tally.epoch + 1, self._lr)
        finally:
            to_layout(self.model, torch.contiguous_format)
            self.model.eval()
        self.unfinished.finish()
        return TrainingResult(
            epochs=tuple(self.records),
            steps=self.steps_per_epoch * len(self.records),
            best_epoch=self._best().epoch,
            last=self.files.last,
            best=self.files.best,
            log=self.files.log,
        )

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _begin(self, note: Callable[[str], None]) -> Tally:
        """Return where the training goes on: at its beginning, or where it was interrupted."""
        state, options = self.unfinished.state, self.options
        if state is None:
            if self.unfinished.replaced:
                note(f"{self.unfinished.replaced}; starting afresh")
            if self.before:
                epochs = " and ".join(str(one.get("epochs")) for one in self.before)
                note(f"the model was trained for {epochs} epochs already; this trains it further")
            return Tally(0, self._lr)
        tally = state.tally
        self.unfinished.restore(self.model, self.optimizer)
        steps = tally.epoch * self.steps_per_epoch + tally.step
        self.scheduler.load_state_dict({"last_epoch": steps, "_step_count": steps + 1})
        self.records, self.before = list(state.records), state.before
        note(
            f"going on in epoch {tally.epoch + 1} of {options.epochs}, after step {tally.step} of "
            f"{self.steps_per_epoch}; to start afresh, remove {self.files.unfinished}"
        )
        return tally

    def _epoch(self, tally: Tally, progress: Progress) -> None:
        epoch, tally = tally.epoch, self._steps(tally, progress)
        reestimate_batch_norm(self.model, self.data, self.options, progress)
        share_buffers(self.ranks, self.model)  # GPUs of two kinds would round differently
        self._require_finite_weights(epoch)
        record = EpochRecord(
            epoch=epoch + 1,
            steps=self.steps_per_epoch,
            loss=tally.loss / tally.seen,
            accuracy=tally.correct / tally.seen,
            holdout_accuracy=self._held_out_accuracy(epoch),
            lr=tally.lr,
            seconds=tally.seconds,
            images_per_second=tally.seen / tally.seconds,
            processes=self.ranks.shard.count,
        )
        self.records.append(record)
        self._note_in_card(record)
        self.files.keep(self.model, self.records, best=self._best() is record)

    def _steps(self, tally: Tally, progress: Progress) -> Tally:
        """Take the steps that are left of an epoch."""
        model, options, epoch = self.model, self.options, tally.epoch
        plans = seeds.generator(options.seed, Purpose.TRAIN_PLANS, epoch)
        sources = sources_of(model)  # of dropout, drop path, the defense, and what else is drawn
        # A network may count its passes, and go by that.
        streams = (*sources, torch_source(plans), numbers_of(model.banks[0]))
        if tally.step and self.unfinished.state is not None:
            put_states(streams, self.unfinished.state.streams)
        else:
            own = (self.ranks.shard.index,) if not self.ranks.first else ()
            start_all(sources, seeds.derive(options.seed, Purpose.TRAIN_NOISE, epoch, *own))
        stream = batches(
            self.data, options.batch_size,
            seeds.generator(options.seed, Purpose.TRAIN_ORDER, epoch),
            options.augment, options.num_workers, start=tally.step, device=model.device,
            shard=self.ranks.shard,
        )  # fmt: skip
        began = time.perf_counter() - tally.seconds
        unseen: list[Tensor] = []
        model.train()
        with Interruptions() as interruptions:
            for step, (images, labels) in enumerate(stream, tally.step + 1):
                size = min(options.batch_size, len(self.data) - (step - 1) * options.batch_size)
                share = Share.of(size, self.ranks.shard)
                unseen.append(self._step(images, labels, plans, share))
                # What comes later waits for the next step, as do the others.
                came, due = self.ranks.most([interruptions.came or 0, self.unfinished.due()])
                # Also after the last step: what follows may take minutes, and is done again.
                save = bool(due or came) or step == self.steps_per_epoch
                if len(unseen) < self.most_unseen and not save:
                    continue
                tally = self._seen(tally, unseen, time.perf_counter() - began)
                unseen.clear()
                progress(
                    f"epoch {epoch + 1}/{options.epochs}", step, self.steps_per_epoch,
                    loss=tally.loss / tally.seen, accuracy=tally.correct / tally.seen,
                    images_per_second=tally.seen / tally.seconds,
                    share=(epoch + step / self.steps_per_epoch) / options.epochs,
                )  # fmt: skip
                if save:
                    self._save(tally, streams)
                if came:
                    interruptions.came = came
                    interruptions.act()
        return tally

    def _seen(self, tally: Tally, unseen: Sequence[Tensor], seconds: float) -> Tally:
        """Add steps to an epoch: of each its loss, the images it got right, and their number."""
        for loss, right, count in torch.stack(tuple(unseen)).tolist():
            step = tally.step + 1
            if not math.isfinite(loss):
                raise self._failure(
                    f"the loss is {loss} in epoch {tally.epoch + 1}, step {step}", tally.epoch
                )
            tally = Tally(
                tally.epoch, tally.lr, step, tally.loss + loss * count,
                tally.correct + round(right), tally.seen + round(count), seconds,
            )  # fmt: skip
        return tally

    def _save(self, tally: Tally, streams: Sequence[Source]) -> None:
        """Keep all that the training goes on from after a step."""
        mine, *others = self.ranks.gathered(states_of(streams))
        state = State(tally, self._lr, mine, tuple(self.records), self.before, others)
        self.unfinished.save(state, self.model, self.optimizer)
        self.ranks.wait()  # or the others end, and the first is ended for that, while it writes

    def _step(
        self, images: Tensor, labels: Tensor, plans: torch.Generator, share: Share | None = None
    ) -> Tensor:
        """Take one step, without waiting for an accelerator.

        Returns:
            Float `[3]`, of the whole batch: the loss, the group's or the mean of those that are
            trained separately; the images that the group classified correctly; the images.
        """
        options, share = self.options, share or Share.of(len(labels))
        defense, penalty = self.defense, self.defense.penalty
        group = defense.group(self.model, options.group_size, plans)
        # the fused kernels have no second derivative
        attention = nullcontext() if penalty is None else sdpa_kernel(SDPBackend.MATH)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=options.amp), attention:
            shown = self._shown(group, images, labels, plans, share)
            if penalty is not None:
                shown = [one.detach().requires_grad_() for one in shown]
            self.optimizer.zero_grad(set_to_none=True)  # or momentum and decay move idle banks
            logits = torch.stack(
                [training_logits(self.model, *pair) for pair in zip(shown, group, strict=True)]
            ).float()
        loss = self.objective(logits, labels)
        if penalty is not None:
            loss = loss + penalty(logits, labels, shown, self.model.card.settings)
        _require_path(loss)
        loss = loss * share.weight
        _backward(loss)
        right = joint_answer(logits.detach()) == labels
        value = loss.detach().float() / (len(group) if defense.separate else 1)
        facts = [value, share.copy * right.sum(), torch.full_like(value, share.copy * len(labels))]
        _make_dense(self.trained)
        found = add_gradients(self.ranks, self.trained, torch.stack(facts))
        self.optimizer.step()
        self.scheduler.step()
        share_buffers(self.ranks, self.model)
        return found

    def _shown(
        self,
        group: Tensor,
        images: Tensor,
        labels: Tensor,
        plans: torch.Generator,
        share: Share | None = None,
    ) -> list[Tensor]:
        """Return the images that each member of a group is trained on."""
        model, options = self.model, self.options
        if options.adversarial == "none":
            return [images] * len(group)
        attack = partial(
            pgd_images, model, images, labels, options=options, generator=plans, share=share
        )
        if self.defense.separate:
            shown = [attack(group=partial(plan.unsqueeze, 0)) for plan in group]
        else:
            fresh = partial(self.defense.group, model, options.group_size, plans)
            shown = [attack(group=fresh)] * len(group)
        model.train()
        return shown

    def _require_finite_weights(self, epoch: int) -> None:
        """Refuse an epoch whose last step broke the weights by gradients that overflow."""
        for bank, tensors in enumerate(self.model.bank_tensors()):
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    found = f"{name} of bank {bank} is NaN or infinite after epoch {epoch + 1}"
                    raise self._failure(found, epoch)

    @torch.no_grad()
    def _held_out_accuracy(self, epoch: int) -> float | None:
        if self.held_out is None:
            return None
        model, options = self.model, self.options
        count = min(self.defense.samples(model), HELD_OUT_DRAWS)
        members = draws(model, count, seed=options.seed, purpose=Purpose.HOLDOUT)
        plans = seeds.generator(options.seed, Purpose.HOLDOUT_ATTACK, epoch)
        group = partial(self.defense.group, model, options.group_size, plans)
        right = broken = 0.0
        for _, images, labels in blocks(self.held_out, options.batch_size):
            share = Share.of(len(labels), self.ranks.shard)
            images, labels = images[share.mine].to(model.device), labels[share.mine]
            if options.adversarial != "none":
                images = pgd_images(
                    model, images, labels.to(model.device), group=group, options=options,
                    generator=plans, share=share,
                )  # fmt: skip
            logits = torch.stack([member(images) for member in members])
            broken += float(not logits.isfinite().all())
            answers = joint_answer(logits).cpu()
            right += share.copy * int((answers == labels).sum())
        found = torch.tensor([right, broken], dtype=torch.float64)
        self.ranks.add([found])
        if found[1]:
            broke = f"the logits of held-out images are not finite after epoch {epoch + 1}"
            raise self._failure(broke, epoch)
        return round(float(found[0])) / len(self.held_out)

    def _best(self) -> EpochRecord:
        return max(self.records, key=lambda record: (record.holdout_accuracy or 0.0, record.epoch))

    def _note_in_card(self, last: EpochRecord) -> None:
        model, whole = self.model, self.whole
        record: dict[str, Any] = {
            "data": whole.name,
            "split": whole.split,
            "data_sha256": whole.sha256,
            "class_names": list(whole.class_names),
            "images": len(self.data),
            "epochs": last.epoch,
            "steps": self.steps_per_epoch * last.epoch,
            "loss": last.loss,
            "accuracy": last.accuracy,
            "holdout_accuracy": last.holdout_accuracy,
            "options": asdict(self.options),
            "processes": last.processes,
            "from_sha256": self.unfinished.start,
        }
        model.card.data = whole.name
        if whole.name != MEMORY:  # whose classes have numbers only
            model.card.class_names = whole.class_names
        model.card.assumed = ()  # by now the weights know these constants
        model.card.training = [*self.before, record]
        # The file that it was loaded from holds other weights.
        model.path = None if self.files.last is None else str(self.files.last)

    def _failure(self, what: str, epoch: int) -> RunError:
        return RunError(f"{what}; {self.files.kept(epoch)}; a smaller `lr` may help")


def _require_path(loss: Tensor) -> None:
    """Require a loss that the weights can be trained by.

    Raises:
        RequestError: It is cut off from them.
    """
    if not loss.requires_grad:
        raise RequestError(
            "the network's logits do not depend differentiably on its weights (its forward pass "
            "runs under torch.no_grad, or detaches them), so it cannot be trained"
        )


def _make_dense(parameters: Sequence[Tensor]) -> None:
    """Make dense what `nn.Embedding(sparse=True)` gives: no decay can be added to it."""
    for one in parameters:
        if one.grad is not None and one.grad.is_sparse:
            one.grad = one.grad.to_dense()


def _backward(loss: Tensor) -> None:
    """Add the loss's gradient to the weights'.

    Raises:
        RequestError: It holds a gradient already, and the network has no second derivative; or the
            network changes in place what the gradient needs.
        RunError: The network has no first one.
    """
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RlskitError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        if of_memory(error):
            raise
        if "inplace" in str(error):
            raise RequestError(
                f"the network changes in place what its gradient needs ({reason(error)}), maybe a "
                "buffer, in the next of the passes that a step makes before its one gradient; "
                "compute with a clone of it, or train with `group_size=1`"
            ) from error
        if not re.search("derivative for|differentiate twice|[Dd]ouble backward", str(error)):
            raise RunError(
                f"the gradient of the network's weights cannot be computed ({reason(error)}), so "
                "it cannot be trained"
            ) from error
        raise RequestError(
            "the defense's loss holds gradients by the image, and the network cannot be "
            f"differentiated twice ({reason(error)})"
        ) from error


def objective(model: BankedModel, options: TrainOptions) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what a step minimises: (logits `[K, B, classes]`, labels `[B]`) -> a scalar.

    Raises:
        RequestError: The defense has a loss of its own, and another is asked for.
    """
    defense, settings = defense_of(model), model.card.settings
    own = defense.loss
    if own is not None:
        if options.loss != "ce" or options.individual:
            raise RequestError(
                f"the defense {model.card.defense} has a loss of its own; leave out "
                "`loss` and `individual`"
            )
        return lambda logits, labels: own(logits, labels, settings)
    if defense.separate:
        return partial(separate_loss, loss=options.loss)
    return partial(group_loss, loss=options.loss, individual=options.individual)


def split(data: Data, options: TrainOptions) -> tuple[Data, Data | None]:
    """Return the images to train on, and a random share kept to choose the best epoch by."""
    held = round(len(data) * options.holdout)
    if not held or len(data) - held < 2:
        return data, None
    order = torch.randperm(len(data), generator=seeds.generator(options.seed, Purpose.HOLDOUT))
    return data.subset(order[held:].sort().values), data.subset(order[:held].sort().values)


def scheduler(
    optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate, to be stepped after every gradient step."""
    total = options.epochs * steps_per_epoch
    if options.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, options.step_epochs * steps_per_epoch)
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    return torch.optim.lr_scheduler.OneCycleLR(  # one more, as it is stepped after the last, too
        optimizer, options.lr, total_steps=total + 1, cycle_momentum=False
    )


def _steps_per_epoch(images: int, batch_size: int) -> int:
    steps = len(runs(images, batch_size))
    if batch_size > 1 and images % batch_size == 1:
        steps -= 1  # a last batch of one image is left out
    if not steps:
        raise RequestError("one image is too few to train on; BatchNorm needs at least 2")
    return steps
