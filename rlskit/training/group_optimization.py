"""Group optimization: K sampled models per step, trained on their mean prediction (section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from rlskit.arguments import checked
from rlskit.data import Data, load
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.models.checkpoint import check_saveable
from rlskit.models.wrapping import give_back
from rlskit.progress import Progress, no_progress
from rlskit.runtime.together import current
from rlskit.storage.locks import only_writer_of
from rlskit.training.epochs import Run
from rlskit.training.kept import Files, TrainingResult
from rlskit.training.train_options import TrainOptions
from rlskit.training.unfinished import SaveEvery


@checked(*(field.name for field in dataclasses.fields(TrainOptions)))
def train(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    options: TrainOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    save_every: int | str = "10min",
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda _: None,
    **fields: Any,
) -> TrainingResult:
    """Train a model in place, on the device it is on, the way its defense is trained.

    In a `with rlskit.together():` the processes that torchrun started share each step's images, and
    the first one writes the files.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits; no file can hold the latter.
        data: A data set's name, a training split from `load_data`, or images and labels; by default
            what the model was made for.
        options: How to train.
        out: Checkpoint to write after each epoch. The best epoch's stands beside it as
            `NAME.best.safetensors`, the log as `NAME.train.jsonl`. It may be the file that the
            model is from. What an interrupted training goes on from, called again in the same way,
            stands there as `NAME.unfinished.safetensors`.
        force: Replace another file that is there, and what a training of another request left.
        save_every: How often the latter is written within an epoch: after so many steps, `500`,
            or minutes, `10min`. At an epoch's last step it always is.
        progress: Told of every step.
        note: Told where it goes on, in a sentence.
        **fields: Fields of `TrainOptions`; they go before those of `options`.

    Raises:
        RequestError: An option or the data is wrong; or a file is there, or a training of another
            request was interrupted there, and `force` is not given.
        RunError: The loss or the weights are not finite; files keep the last good epoch. Or
            another process trains into `out`.
    """
    options = dataclasses.replace(options or TrainOptions(), **fields)
    every = SaveEvery.read(save_every)
    banked, data = taken(model, data, "train")
    if out is not None:
        check_saveable(banked)
    ranks = current()
    written = Path(out) if out is not None and ranks.first else None
    files = Files(written, model=banked.path, force=force)
    if not isinstance(data, Data):
        data = load(data or banked.card.default_data(), "train")
    card = banked.card
    data = data.adapted(card.pixels, card.classes, card.names)
    with only_writer_of(files.last):
        result = Run(banked, options, data, files, every, ranks).go(progress, note)
    if banked is not model:
        give_back(banked, model)
    return result
