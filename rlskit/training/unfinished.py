"""What an unfinished training goes on from, bit for bit: one file beside its checkpoint.

It holds the weights and momenta as they are within an epoch, and in its metadata the request that
it is of, and a `State`. All else is a function of the seed, the epoch and the number of steps.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlskit.data import Data
from rlskit.documents import Whole, from_json
from rlskit.errors import RequestError
from rlskit.evaluation.subject import library_versions
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.models.trace import tensor_names
from rlskit.runtime.together import ALONE, Ranks
from rlskit.storage.sealed import read_sealed, write_sealed
from rlskit.training.kept import EpochRecord, Files
from rlskit.training.train_options import TrainOptions

FORMAT = "rlskit.training/1"

BEGAN_FROM = "starting weights"

_LIBRARIES = ("rlskit", "torch", "torchvision", "timm")


@dataclass(frozen=True)
class Tally:
    """How far an epoch is, with sums over the images of its steps.

    Attributes:
        epoch: From 0.
        lr: Learning rate of its first step.
        step: Steps that were taken.
        loss: Sum of the losses.
        correct: Images that the group classified correctly.
        seen: Images.
        seconds: What the steps took.
    """

    epoch: Whole
    lr: float
    step: Whole = 0
    loss: float = 0.0
    correct: Whole = 0
    seen: Whole = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """Where a training is, but for its tensors.

    Attributes:
        tally: The epoch that it is in.
        lr: Learning rate of the next step.
        streams: States of the sources of random numbers, of `streams.states_of`.
        records: Of the epochs before.
        before: The records of trainings that the model began with.
        others: What `streams` is of the other processes, where several trained together.
    """

    tally: Tally
    lr: float
    streams: list[Any]
    records: tuple[EpochRecord, ...]
    before: list[dict[str, Any]]
    others: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SaveEvery:
    """How often the state is kept within an epoch: after so many steps, or seconds."""

    steps: float = math.inf
    seconds: float = math.inf

    @classmethod
    def read(cls, text: str | int) -> SaveEvery:
        """Read a number of steps, `500`, or of minutes, `10min`.

        Raises:
            RequestError: It is neither.
        """
        found = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)min", str(text))
        if found is None or float(found[1] or found[2]) == 0:
            raise RequestError(
                f"`save_every` is a number of steps such as 500, or of minutes such as 10min, not "
                f"{str(text)!r}"
            )
        return cls(steps=int(found[1])) if found[1] else cls(seconds=60 * float(found[2]))


class Unfinished:
    """What is kept of a training while it runs; without files, nothing.

    Args:
        model: About to be trained.
        options: How.
        data: All training images.
        files: Where it is kept.
        every: How often, within an epoch.
        ranks: The processes that train together; the first one has the files.

    Attributes:
        start: The digest of the model that the training began from.
        state: Where one of the same request ended that was interrupted; None where none did.
        replaced: What is there instead, in a sentence, and makes room as `files.force` says so.

    Raises:
        RequestError: What is there is of another request, or damaged, and `files.force` is not
            given; or it goes on in files that are not this training's; or the processes do not
            train the same.
    """

    def __init__(
        self, model: BankedModel, options: TrainOptions, data: Data, files: Files,
        every: SaveEvery, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.files, self.every, self.ranks = files, every, ranks
        self.start = checkpoint.digest_of(model)
        self._request = request_of(model, options, data, self.start, ranks.shard.count)
        self._require_same()
        self.state: State | None = None
        self.replaced: str | None = None
        self._tensors: dict[str, Tensor] = {}
        self._steps, self._saved = 0, time.monotonic()
        if files.unfinished is not None and files.unfinished.exists():
            try:
                self._take_over(model)
            except RequestError as error:
                if not files.force:
                    raise RequestError(f"{error}; `force` starts afresh") from error
                self.replaced = str(error)
        self._momenta = [name for name in self._tensors if name.startswith(_momentum(""))]
        self._share()

    def restore(self, model: BankedModel, optimizer: torch.optim.Optimizer) -> None:
        """Give a model and its optimizer what was kept of them.

        Raises:
            RequestError: It does not fit them.
        """
        assert self.state is not None
        optimizer.param_groups[0]["lr"] = self.state.lr
        for name, parameter in model.named_parameters():
            if _momentum(name) in self._momenta:
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(
                    parameter, requires_grad=False
                )
        tensors = tensors_of(model, optimizer)
        if self.ranks.first:
            self._put(tensors)
        self.ranks.give(tensors.values())

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            kept = self._tensors.get(name)
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                raise RequestError(f"{self.files.unfinished} does not fit the model at {name}")
            tensor.copy_(kept)
        self._tensors = {}

    def due(self) -> bool:
        """Whether the state is to be kept after one more step."""
        self._steps += 1
        since = time.monotonic() - self._saved
        return self._steps >= self.every.steps or since >= self.every.seconds

    def save(self, state: State, model: BankedModel, optimizer: torch.optim.Optimizer) -> None:
        """Keep the state, in the place of the one before."""
        if self.files.unfinished is not None:
            about = {"format": FORMAT, "request": self._request, "state": _document(state)}
            write_sealed(self.files.unfinished, tensors_of(model, optimizer), about)
        self._steps, self._saved = 0, time.monotonic()

    def finish(self) -> None:
        """Remove the file: its absence says that the training is whole."""
        if self.files.unfinished is not None:
            self.files.unfinished.unlink(missing_ok=True)

    def _require_same(self) -> None:
        """Require that all processes were asked for the same.

        Raises:
            RequestError: One was not.
        """
        first, *others = self.ranks.gathered(self._request)
        for number, other in enumerate(others, 1):
            if other != first:
                raise RequestError(
                    f"of the processes that train together, number {number} was called with "
                    f"{_differences(other, first)}; give all of them the same"
                )

    def _share(self) -> None:
        """Let all processes go on from what the first one found."""
        told = [self.start, self._momenta, self.state and _document(self.state)]
        self.start, self._momenta, state = self.ranks.gathered(told)[0]
        if not self.ranks.first and state is not None:
            found = from_json(state, State)
            self.state = dataclasses.replace(
                found, streams=found.others[self.ranks.shard.index - 1]
            )

    def _take_over(self, model: BankedModel) -> None:
        """Take the state in the file.

        Raises:
            RequestError: It is not this training's.
        """
        file = self.files.unfinished
        assert file is not None
        about, tensors = read_sealed(file, FORMAT)
        known, start = about.get("request"), self.start
        if not isinstance(known, dict):
            raise RequestError(f"{file} does not say what it is of")
        last = model.card.training[-1] if model.card.training else {}
        if self.files.in_place and last.get("from_sha256") == known.get(BEGAN_FROM):
            start = str(known[BEGAN_FROM])  # the model is what it wrote over them
        wanted = self._request | {BEGAN_FROM: start}
        if known != wanted:
            raise RequestError(
                f"{file} is of an interrupted training, which was called with "
                f"{_differences(known, wanted)}"
            )
        try:
            state = from_json(about["state"], State)
        except (KeyError, ValueError) as error:
            raise RequestError(f"{file} holds no state of a training ({error})") from error
        self.files.require_own(start, best=bool(state.records))
        self.start, self._request, self.state, self._tensors = start, wanted, state, tensors


def request_of(
    model: BankedModel, options: TrainOptions, data: Data, start: str, processes: int = 1
) -> dict[str, Any]:
    """Return all that decides what a training ends with, under the names that people know."""
    decide = dataclasses.asdict(options)
    del decide["num_workers"]
    return {
        **decide,
        "data": f"{data.name} {data.split} {data.sha256}",
        BEGAN_FROM: start,
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
        **versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that a training depends on: none of those that only attacks need."""
    return {name: one for name, one in library_versions().items() if name in _LIBRARIES}


def tensors_of(model: BankedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors that a training moves: weights and buffers of all banks, and momenta.

    A network may also move buffers that no state dict has; all plans run on bank 0's.
    """
    found = dict(checkpoint.stored_tensors(model))
    saved = tensor_names(model.banks[0])
    for name, buffer in model.banks[0].named_buffers():
        constant = not buffer.is_contiguous() or buffer.is_complex()
        if name not in saved and not constant:
            found[f"unsaved.{name}"] = buffer
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[_momentum(name)] = buffer
    return found


def _document(state: State) -> dict[str, Any]:
    """Return a state as JSON values; its many numbers are not looked at one by one."""
    parts = {"tally": vars(state.tally), "records": [vars(one) for one in state.records]}
    return vars(state) | parts


def _momentum(name: str) -> str:
    return f"momentum.{name}"


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say what was known where it differs, as in "`lr=0.1` and other data"."""
    names = [name for name in {**wanted, **known} if known.get(name) != wanted.get(name)]
    *more, last = [_said(name, known.get(name)) for name in names]
    return f"{', '.join(more)} and {last}" if more else last


def _said(name: str, value: Any) -> str:
    if name in ("data", BEGAN_FROM):
        return f"other {name}"
    if name == "processes":
        return f"{value} process{'' if value == 1 else 'es'}"
    if name not in {field.name for field in dataclasses.fields(TrainOptions)}:
        return f"{name} {value}"
    return f"no `{name}`" if value is False else f"`{name}={value!r}`"
