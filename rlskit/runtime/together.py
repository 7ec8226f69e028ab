"""Processes that do one thing together, as torchrun starts them: what they tell each other.

Tensors are added up over nccl on CUDA and over gloo elsewhere; what the processes themselves have
to say goes over gloo, so that it waits for no GPU. When one ends, it leaves its last word in the
store that they met in, so that all end for the same reason: it does not depend on who started them.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlskit import errors
from rlskit.errors import RequestError, RlskitError, RunError, reason
from rlskit.runtime.sharding import WHOLE, Shard

_WORD, _LEFT = "rlskit.word", "rlskit.left"
"""Keys of the store: why the first one ended, and how many are gone since."""

_PATIENCE = 5.0  # seconds for the word of one that is gone
_MEETING = 1800.0  # seconds that processes wait for each other at the beginning
_LINGER = 5.0  # seconds that the store stays for the others, where it is in the first process


class LostError(RunError):
    """Another process cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that do one thing together; by default there is no other.

    Attributes:
        shard: Its number, and how many there are.
        store: Where they met.
    """

    shard: Shard = WHOLE
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.shard.index == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.shard.count > 1

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add up each tensor over all processes, in place and with the same bits for all."""
        if self.many:
            with _reaching():
                _in_one(tensors, dist.all_reduce)

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's tensors, in place."""
        if self.many:
            with _reaching():
                _in_one(tensors, lambda flat: dist.broadcast(flat.view(torch.uint8), 0))

    def most(self, values: Sequence[int]) -> list[int]:
        """Return the largest of the processes' values, at each place."""
        if not self.many:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        with _reaching():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's value, which is of JSON's types, in their order."""
        if not self.many:
            return [value]
        text = json.dumps(value).encode()
        (longest,) = self.most([len(text)])
        mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.shard.count)]
        with _reaching():
            dist.all_gather(found, mine)
        return [json.loads(one.numpy().tobytes()) for one in found]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.most([0])


ALONE = Ranks()

_current: list[Ranks] = [ALONE]


def current() -> Ranks:
    """Return the processes that this one is `together` with; `ALONE` outside."""
    return _current[-1]


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Do something in this process only, whoever started it: `together` finds no others."""
    with _being(Ranks()):
        yield


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, if it was several.

    When one of them ends early, by an error or a signal, so do all: for the reason of the first.
    Inside of another `together`, or of `apart`, nothing is begun.

    Raises:
        RequestError: `RANK` and `WORLD_SIZE` say that there are others, and they cannot be met.
        LostError: One was killed, or its machine is gone.
    """
    shard = _given(os.environ)
    if shard.count == 1 or len(_current) > 1:
        yield current()
        return
    ranks = _met(shard)
    well = False
    try:
        with _being(ranks):
            yield ranks
        well = True
    except BaseException as error:
        _end_as_others(ranks, error)
        raise
    finally:
        _leave(ranks, well=well)


@contextlib.contextmanager
def _being(ranks: Ranks) -> Iterator[None]:
    _current.append(ranks)
    try:
        yield
    finally:
        _current.pop()


def _given(environ: Mapping[str, str]) -> Shard:
    """Return what torchrun says of this process; nobody need have said anything.

    Raises:
        RequestError: It is no rank.
    """
    if "RANK" not in environ or environ.get("WORLD_SIZE", "1") == "1":
        return WHOLE
    said = f"RANK={environ['RANK']} of WORLD_SIZE={environ['WORLD_SIZE']}"
    try:
        return Shard(int(environ["RANK"]), int(environ["WORLD_SIZE"])).checked(said)
    except ValueError as error:
        raise RequestError(
            f"{said} is no number of processes, as torchrun sets it; unset both"
        ) from error


def _met(shard: Shard) -> Ranks:
    """Return the processes, once all are there.

    Raises:
        RequestError: They cannot be met.
    """
    try:
        from torch.distributed.rendezvous import rendezvous  # which not every torch has

        backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
        store = _among_these(next(rendezvous("env://"))[0], shard)
        dist.init_process_group(backend, store=store, rank=shard.index, world_size=shard.count)
    except (AttributeError, ImportError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"this is process {shard.index} of {shard.count} by RANK and WORLD_SIZE, and the "
            f"others cannot be met ({reason(error)}); start all with torchrun, or unset both"
        ) from error
    return Ranks(shard, store)


def _among_these(store: Any, shard: Shard) -> Any:
    """Return a part of a store for the processes that are here now.

    torchrun keeps its store when it starts processes again, with what those before wrote in it,
    such as where they listened: torch would wait for those. So each leaves a name, the first one
    writes down all names as long as they change, and the others say when theirs is among them.

    Raises:
        RuntimeError: They do not come.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    name, until = uuid.uuid4().hex, time.monotonic() + _MEETING
    numbers = range(shard.count)
    store.set(f"rlskit.name.{shard.index}", name)
    while time.monotonic() < until:
        if shard.index == 0:
            store.set("rlskit.names", ",".join(_kept(store, f"name.{one}") for one in numbers))
            if all(_kept(store, f"heard.{one}") == name for one in numbers[1:]):
                return PrefixStore(name, store)
        else:
            names = _kept(store, "names").split(",")
            if name in names:
                store.set(f"rlskit.heard.{shard.index}", names[0])
                return PrefixStore(names[0], store)
        time.sleep(0.02)
    raise RuntimeError(f"not all came within {_MEETING / 60:.0f} minutes")


def _kept(store: Any, key: str) -> str:
    key = f"rlskit.{key}"
    return store.get(key).decode() if store.check([key]) else ""


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Tell what torch raises when a process is gone from other errors.

    Raises:
        LostError: One is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if re.search("out of memory|invalid usage|Duplicate GPU", str(error)):
            raise
        raise LostError(
            "another of the processes was killed, or cannot be reached any more; the same command "
            "goes on from what was saved last"
        ) from error


@torch.no_grad()
def _in_one(tensors: Iterable[Tensor], act: Callable[[Tensor], object]) -> None:
    """Do something in place to tensors, all of one type as one."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        act(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _end_as_others(ranks: Ranks, error: BaseException) -> None:
    """Raise why the first process ended, if this one ends for that; else say why this one does.

    A signal is for that, too: who started the processes ends those that are left.
    """
    lost = isinstance(error, LostError)
    if lost or not isinstance(error, Exception):
        word = _word(ranks, _PATIENCE if lost else 0)
        if word is not None and word != _words(error):
            raise _error_of(word) from error
    if not lost:
        with contextlib.suppress(RuntimeError):  # the store is gone
            ranks.store.compare_set(_WORD, "", json.dumps(_words(error)))


def _word(ranks: Ranks, seconds: float) -> dict[str, Any] | None:
    """Return what the first process that ended said, if it does within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            if ranks.store.check([_WORD]):
                return dict(json.loads(ranks.store.get(_WORD)))
        except RuntimeError:  # the store is gone, too
            return None
        if time.monotonic() >= until:
            return None
        time.sleep(0.02)


def _words(error: BaseException) -> dict[str, Any]:
    """Return what others need to end as an error does."""
    if isinstance(error, KeyboardInterrupt):
        return {"signal": signal.SIGINT}
    if not isinstance(error, Exception | SystemExit):
        return {"signal": signal.SIGTERM}
    text = error.strerror if isinstance(error, OSError) and error.errno else str(error)
    number = getattr(error, "errno", None)
    file = getattr(error, "filename", None)
    return {"kind": type(error).__name__, "text": text, "errno": number, "file": file and str(file)}


def _error_of(word: Mapping[str, Any]) -> BaseException:
    """Return the error that another process ended with, or be sent the signal that it was."""
    if "signal" in word:
        signal.raise_signal(int(word["signal"]))  # which ends this one, if any handler does
        return RunError("another of the processes was sent a signal that ended it")
    kind, text = str(word["kind"]), str(word["text"])
    if word["errno"]:
        return OSError(word["errno"], text, word["file"])
    for known in (errors, builtins, torch):
        found = getattr(known, kind, None)
        if isinstance(found, type) and issubclass(found, RlskitError | Exception | SystemExit):
            with contextlib.suppress(TypeError):  # it takes more than a sentence
                return found(text)
    return RunError(f"{kind}: {text}")


def _leave(ranks: Ranks, *, well: bool) -> None:
    """Close the connections, which wakes those that wait for this one."""
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
        if well:
            return
        ranks.store.add(_LEFT, 1)
        if ranks.first and not os.environ.get("TORCHELASTIC_USE_AGENT_STORE"):
            until = time.monotonic() + _LINGER
            while ranks.store.add(_LEFT, 0) < ranks.shard.count and time.monotonic() < until:
                time.sleep(0.02)
