"""The sources of random numbers that a network's forward pass may use, seeded and given back."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from rlskit import seeds
from rlskit.errors import RequestError, reason
from rlskit.seeds import Purpose

OFTEN = 32
"""Calls after which a network that draws random numbers may be taken for one that ignores them."""


class Source(NamedTuple):
    """A generator of random numbers: how its state is got and put, and how a seed starts it."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    start: Callable[[int], object]


def sources_of(network: nn.Module | None = None) -> tuple[Source, ...]:
    """Return every source that a network's forward pass may use, or the global ones without one.

    Beside the global ones, those are the generators that are attributes of the network's modules,
    of their classes, and of the files that these are in. On a GPU its generator gives other numbers
    than the CPU's.
    """
    return (torch_source(torch.default_generator), *others_of(network), *_gpus_of(network))


def others_of(network: nn.Module | None = None) -> tuple[Source, ...]:
    """Return the sources among `sources_of` that are not torch's own global ones."""
    modules = [] if network is None else list(network.modules())
    # In an order that is the same in every process, as the place decides the stream.
    kinds = dict.fromkeys(kind for one in dict.fromkeys(map(type, modules)) for kind in one.__mro__)
    classes = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    files = dict.fromkeys(kind.__module__ for kind in classes if kind.__module__ in sys.modules)
    places: list[Mapping[str, object]] = [*map(vars, modules), *map(vars, classes)]
    places += [vars(sys.modules[file]) for file in files]
    found = {id(value): _source(value) for place in places for value in list(place.values())}
    own = [source for source in found.values() if source is not None]
    return (_python(random), _numpy(np.random), *own)


@contextmanager
def streamed(sources: Sequence[Source], seed: int) -> Iterator[None]:
    """Let sources give the numbers that a seed decides, each its own; put them back after."""
    with kept(sources):
        for place, source in enumerate(sources):
            source.start(seeds.derive(seed, Purpose.VARIATES, place))
        yield


@contextmanager
def started(seed: int) -> Iterator[None]:
    """Start the global sources by a seed, no GPU's among them; put them back after."""
    sources = sources_of()
    with kept(sources):
        start_all(sources, seed)
        yield


def start_all(sources: Sequence[Source], seed: int) -> None:
    """Start all sources by one seed."""
    for source in sources:
        source.start(seed)


@contextmanager
def kept(sources: Sequence[Source]) -> Iterator[None]:
    """Put sources back as they were."""
    states = [source.get() for source in sources]
    try:
        yield
    finally:
        for source, state in zip(sources, states, strict=True):
            source.put(state)


def varies(
    network: nn.Module,
    answer: Callable[[], torch.Tensor],
    alike: Callable[[torch.Tensor, torch.Tensor], bool] = torch.equal,
) -> bool:
    """Say whether a network answers otherwise under other random numbers.

    One that asks for none is asked once more. One that does is asked often: a choice between two
    paths, or sizes, comes out the same in one case of two.

    Args:
        network: Whose sources are looked at; they are put back.
        answer: Asks it.
        alike: Whether two answers are the same.
    """
    sources = sources_of(network)
    with kept(sources):
        before = states_of(sources)
        first = answer()
        calls = 1 if states_of(sources) == before else OFTEN
        for seed in range(calls):
            start_all(sources, seed)
            if not alike(answer(), first):
                return True
    return False


def states_of(sources: Sequence[Source]) -> list[Any]:
    """Return the states of sources as JSON values, for `put_states`."""
    return [_plain(source.get()) for source in sources]


def put_states(sources: Sequence[Source], states: Sequence[Any]) -> None:
    """Give sources the states that `states_of` found, maybe in another process.

    Raises:
        RequestError: They are no states of these.
    """
    try:
        for source, state in zip(sources, states, strict=True):
            source.put(_like(source.get(), state))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RequestError(
            f"the kept states of random numbers are not of this network ({reason(error)})"
        ) from error


def numbers_of(network: nn.Module) -> Source:
    """Return, as if it were a source, the numbers that a network's modules keep as attributes.

    A forward pass may count in them how often it was called, or note that it has been. No seed
    starts them.
    """
    modules = list(network.modules())

    def put(found: Sequence[Mapping[str, Any]]) -> None:
        for module, own in zip(modules, found, strict=True):
            vars(module).update(own)

    return Source(lambda: [_numbers(module) for module in modules], put, lambda _: None)


def _numbers(module: nn.Module) -> dict[str, Any]:
    own = vars(module).items()
    return {n: value for n, value in own if type(value) in (bool, int, float) and n != "training"}


def _plain(state: Any) -> Any:
    """Return a state without tensors, arrays and tuples."""
    if isinstance(state, torch.Tensor | np.ndarray):
        return state.tolist()
    if isinstance(state, dict):
        return {name: _plain(one) for name, one in state.items()}
    return [_plain(one) for one in state] if isinstance(state, tuple) else state


def _like(known: Any, plain: Any) -> Any:
    """Return what `_plain` was given, of the types that a known state is made of."""
    if isinstance(known, torch.Tensor):
        return torch.tensor(plain, dtype=known.dtype)
    if isinstance(known, np.ndarray):
        return np.array(plain, dtype=known.dtype)
    if isinstance(known, dict):
        return {name: _like(one, plain[name]) for name, one in known.items()}
    if isinstance(known, tuple):
        return tuple(_like(*pair) for pair in zip(known, plain, strict=True))
    return plain


def _gpus_of(network: nn.Module | None) -> tuple[Source, ...]:
    parameters = () if network is None else network.parameters()
    indices = sorted({p.device.index or 0 for p in parameters if p.is_cuda})
    return tuple(torch_source(torch.cuda.default_generators[index]) for index in indices)


def _source(value: object) -> Source | None:
    """Return the source that an attribute is, if it is one."""
    if isinstance(value, torch.Generator):
        return torch_source(value)
    if isinstance(value, random.Random):
        return _python(value)
    if isinstance(value, np.random.RandomState):
        return _numpy(value)
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        put = functools.partial(setattr, bits, "state")
        return Source(lambda: bits.state, put, lambda seed: put(type(bits)(seed).state))
    return None


def torch_source(generator: torch.Generator) -> Source:
    """Return a generator of torch's as a source."""
    return Source(generator.get_state, generator.set_state, generator.manual_seed)


def _python(generator: Any) -> Source:
    return Source(generator.getstate, generator.setstate, generator.seed)


def _numpy(generator: Any) -> Source:
    return Source(
        generator.get_state, generator.set_state, lambda seed: generator.seed(seed % 2**32)
    )
