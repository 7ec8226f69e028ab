"""What a caller may give by name, and how our sentences name it.

An argument stands in backquotes as Python spells it, `n_samples`; so does what to write there,
`norm='l2'` or `rlskit.attack(save_adversarial=True)`. The command line turns both into its own
words (`rlskit.cli.wording`).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import reprlib
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

from rlskit.errors import RequestError

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    Path: (PathLike, "a path"),
    NoneType: (NoneType, "None"),
}
"""Annotation -> what a value must be an instance of, and what people call it."""


def argument(name: str) -> str:
    """Return how a sentence names an argument, or the option of a recipe, `step-size`."""
    return f"`{name.replace('-', '_')}`"


def checked(*more: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: a call with a wrong name or type is refused by a sentence.

    The types are those of the annotations, as far as they are plain ones. The modes of
    torch that the caller is in do not hold inside.

    Args:
        more: Names that the function takes besides those of its signature.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            refuse_unknown(kwargs, (*names, *more))
            check_types({**dict(zip(names, args, strict=False)), **kwargs}, function)
            with in_own_modes():
                return function(*args, **kwargs)

        return call

    return decorated


@contextmanager
def in_own_modes() -> Iterator[None]:
    """Compute gradients, and in the model's own precision, whatever mode the caller is in.

    Under a caller's `torch.no_grad` or `torch.inference_mode` it would look as if a model had no
    gradients; under `torch.autocast` attacks would find less, in a precision that no result tells.
    """
    import torch

    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            modes.enter_context(torch.autocast(kind, enabled=False))
        yield


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Require known names.

    Raises:
        RequestError: One is not; the nearest is named.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {argument(near[0])}?" if near else "there is none like it"
            raise RequestError(f"{argument(name)} is no option; {hint}")


def check_types(values: Mapping[str, Any], annotated: Any) -> None:
    """Require values of the types that a function's or a class's annotations say.

    Raises:
        RequestError: One is of another.
    """
    hints = _hints(annotated)
    for name, value in values.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise RequestError(f"{argument(name)} is {_words(hint)}, not {reprlib.repr(value)}")


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    return typing.get_type_hints(annotated)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type; of all but plain ones, what uses it says."""
    if _is_union(hint):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if _is_list(hint):
        if not isinstance(value, Collection) or isinstance(value, str | bytes):
            return False
        return all(_fits(one, typing.get_args(hint)[0]) for one in value)
    if hint not in _KINDS:
        return True
    return isinstance(value, _KINDS[hint][0]) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    if _is_union(hint):
        *others, last = dict.fromkeys(map(_words, typing.get_args(hint)))
        return f"{', '.join(others)} or {last}" if others else last
    return "a list" if _is_list(hint) else _KINDS[hint][1]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, UnionType)


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (Sequence, tuple, list)
