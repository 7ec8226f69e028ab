"""What a training did, and the files it keeps: last and best weights, and the log."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlskit.errors import RequestError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.storage.files import parse_json, write_text

_LONGEST_LINE = 10_000  # of a log, in characters


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log: means over the epoch's steps, and the held-out accuracy.

    In adversarial training all of them are under its attack.
    """

    epoch: int
    steps: int
    loss: float
    accuracy: float
    holdout_accuracy: float | None
    lr: float
    seconds: float
    images_per_second: float
    processes: int = 1


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


class Files:
    """The files of a training; without a place to write them, all of them None.

    Args:
        out: The checkpoint of the last epoch; the others stand beside it.
        model: The file that the model was loaded from, which it may be trained into.
        force: Replace files that are there, whatever they are.

    Attributes:
        unfinished: What the training goes on from, while it is not finished.
        in_place: Whether `out` is the file of the model.

    Raises:
        RequestError: There is no folder to write in, or it may not be written to; or a file is
            there that is neither `model` nor left beside it by a training. Beside an unfinished
            training that is for `require_own` to say.
    """

    def __init__(self, out: Path | None, *, model: str | None = None, force: bool = False) -> None:
        self.last, self.best, self.log, self.unfinished = out, None, None, None
        self.force, self.in_place = force, False
        if out is None:
            return
        if not out.parent.is_dir():
            raise RequestError(f"there is no folder {out.parent} to write {out.name} in")
        if out.is_dir():
            raise RequestError(f"{out} is a folder; `out` names the checkpoint to write")
        if not os.access(out.parent, os.W_OK):
            raise RequestError(f"the folder {out.parent} cannot be written to; name another `out`")
        self.in_place = model is not None and _same(out, Path(model))
        self.best = out.with_name(f"{out.stem}.best.safetensors")
        self.log = out.with_name(f"{out.stem}.train.jsonl")
        self.unfinished = unfinished_of(out)
        for file in (self.best, self.log, self.unfinished):
            if file.is_dir():
                raise RequestError(f"{file} is a folder, in the place of a training's file")
        if not self.unfinished.exists():
            self._refuse_foreign()

    def require_own(self, start: str, *, best: bool) -> None:
        """Require that the files are those of a training that goes on.

        Args:
            start: The digest of the model that it began from.
            best: Whether there is a best epoch, so that its file must be there.

        Raises:
            RequestError: They are not.
        """
        self._refuse_foreign(start)
        if best and self.best is not None and not _is_trained(self.best, start):
            raise RequestError(f"{self.best} is not what the training that was interrupted wrote")

    def _refuse_foreign(self, start: str | None = None) -> None:
        """Require, without `force`, that files that are there may be replaced.

        Raises:
            RequestError: One may not.
        """
        if self.force or self.last is None or self.best is None or self.log is None:
            return
        begun = start is not None and _is_trained(self.last, start)
        if self.last.exists() and not (self.in_place or begun):
            raise RequestError(f"{self.last} exists already; `force` replaces it")
        for file, is_ours in ((self.best, _is_trained), (self.log, _is_log)):
            if file.exists() and not is_ours(file):
                raise RequestError(
                    f"{file} is no training's, and would be written beside {self.last.name}; move "
                    "it away, or use `force` to replace it"
                )

    def keep(self, model: BankedModel, records: Sequence[EpochRecord], *, best: bool) -> None:
        """Write the weights of an epoch, and the log with its line."""
        if self.last is None or self.best is None or self.log is None:
            return
        checkpoint.save(model, self.last, force=True)
        if best:
            checkpoint.save(model, self.best, force=True)
        lines = [json.dumps(asdict(record)) + "\n" for record in records]
        write_text(self.log, "".join(lines), force=True)

    def kept(self, epochs: int) -> str:
        """Say what a run that fails after so many whole epochs leaves behind."""
        if self.last is None:
            return "the model in memory is of no use any more"
        if epochs:
            return f"{self.last} keeps epoch {epochs}"
        return f"{self.last} {'is as it was' if self.last.exists() else 'was not written'}"


def unfinished_of(out: Path) -> Path:
    """Return where a training keeps what it goes on from, while it is not finished."""
    return out.with_name(f"{out.stem}.unfinished.safetensors")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _is_trained(file: Path, start: str | None = None) -> bool:
    """Whether a file is a checkpoint that a training wrote, or one that began from a digest."""
    try:
        records = checkpoint.inspect(file)["training"]
    except (OSError, RequestError):
        return False
    return bool(records) and start in (None, records[-1].get("from_sha256"))


def _is_log(file: Path) -> bool:
    """Whether a file is the log of a training."""
    try:
        with file.open(encoding="utf-8") as lines:
            first = parse_json(lines.readline(_LONGEST_LINE))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() >= {"epoch", "steps", "loss"}
