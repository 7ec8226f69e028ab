"""A result read back from JSON that may come from anyone: each field is what it must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlskit.errors import RequestError, reason
from rlskit.results.result import SCHEMA, Result
from rlskit.storage.files import parse_json

Read = Callable[[Any, str], None]
"""Raises `ValueError` where a value, found at a place in the JSON, is not of its type."""

_LARGEST = 2**53  # above it, JSON's readers no longer agree on whole numbers
_LARGEST_FILE = 2**28  # bytes; a result has a few thousand, with matrices a few million


def read_results(file: Path) -> list[Result]:
    """Read a file of one result or several.

    Raises:
        RequestError: It is not there, or holds anything else.
    """
    advice = "name a run's folder or its results.json"
    try:
        if file.stat().st_size > _LARGEST_FILE or not file.is_file():
            raise RequestError(f"{file} is no file of results; {advice}")
        text = file.read_text(encoding="utf-8")
        found = parse_json(text, parse_constant=_finite, parse_float=_finite)
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        why = reason(error)
        raise RequestError(f"{file} cannot be read as results ({why}); {advice}") from error
    objects = found if isinstance(found, list) and found else [found]
    if not all(isinstance(one, dict) and one.pop("schema", None) == SCHEMA for one in objects):
        raise RequestError(f"{file} does not hold results of the schema {SCHEMA}; {advice}")
    try:
        return [_result(one) for one in objects]
    except (TypeError, ValueError) as error:
        why = reason(error)
        raise RequestError(f"{file} is not a result of {SCHEMA} ({why}); {advice}") from error


def _result(fields: dict[str, Any]) -> Result:
    for name, read in _FIELDS.items():
        if name in fields:  # where one is missing that must be there, `Result` says so
            read(fields[name], name)
    result = Result(**fields)
    if (result.command != "diversity") and not {"clean", "robust"} & result.accuracy.keys():
        raise ValueError("accuracy is neither of clean images nor robust")
    return result


def _finite(text: str) -> float:
    """Return the number of a text; results hold no NaN, and no 1e999 either."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number of a result's")
    return float(text)


def _is(value: bool, what: str, where: str) -> None:
    if not value:
        raise ValueError(f"{where} is not {what}")


def _text(value: Any, where: str) -> None:
    _is(isinstance(value, str), "a text", where)


def _flag(value: Any, where: str) -> None:
    _is(isinstance(value, bool), "true or false", where)


def _number(value: Any, where: str) -> None:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    _is(right and abs(value) <= 1e300, "a number within reason", where)


def _share(value: Any, where: str) -> None:
    _number(value, where)
    _is(0 <= value <= 1, "a share in [0, 1]", where)


def _integer(value: Any, where: str) -> None:
    _is(isinstance(value, int) and not isinstance(value, bool), "a whole number", where)


def _whole(least: int) -> Read:
    def read(value: Any, where: str) -> None:
        right = isinstance(value, int) and not isinstance(value, bool)
        _is(right and least <= value <= _LARGEST, f"a whole number from {least}", where)

    return read


def _maybe(read: Read) -> Read:
    return lambda value, where: None if value is None else read(value, where)


def _pair(value: Any, where: str) -> None:
    _is(isinstance(value, list) and len(value) == 2, "a pair of numbers", where)
    for number in value:
        _number(number, where)


def _texts(value: Any, where: str) -> None:
    _is(isinstance(value, list), "a list of texts", where)
    for one in value:
        _text(one, where)


def _table(required: Mapping[str, Read], optional: Mapping[str, Read] | None = None) -> Read:
    """Read a table with some fields of known types; it may have others."""

    def read(value: Any, where: str) -> None:
        _is(isinstance(value, dict), "a table", where)
        for name, one in required.items():
            _is(name in value, f"complete: {name} is missing", where)
            one(value[name], f"{where}.{name}")
        for name, one in (optional or {}).items():
            if name in value:
                one(value[name], f"{where}.{name}")

    return read


def _each(read: Read) -> Read:
    """Read a table with any names and values of one type."""

    def each(value: Any, where: str) -> None:
        _is(isinstance(value, dict), "a table", where)
        for name, one in value.items():
            read(one, f"{where}.{name}")

    return each


def _attack(value: Any, where: str) -> None:
    _table(
        {
            "method": _text,
            "engine": _text,
            "view": _text,
            "params": _table({}, {"of": _attacks}),
            "stated": _table({}, {"eps": _maybe(_number), "c": _maybe(_number)}),
            "pixel_range": _text,
        },
        {"risk": _text, "broken": _each(_whole(0))},
    )(value, where)


def _attacks(value: Any, where: str) -> None:
    _is(isinstance(value, list) and bool(value), "a list of attacks", where)
    for one in value:
        _attack(one, where)


_ACCURACY = _table(
    {
        "mean": _share,
        "std": _maybe(_number),
        "ci95": _pair,
        "n": _whole(1),
        "lower_bound": _number,
    }
)
_MEASURE = _table({"mean": _maybe(_number), "std": _maybe(_number)}, {"ci95": _maybe(_pair)})

_FIELDS: dict[str, Read] = {
    "command": _text,
    "checkpoint": _table({}),
    "model": _table({"architecture": _text}),
    "defense": _text,
    "data": _table(
        {"name": _text, "split": _text, "n": _whole(1)},
        {"sha256": _text, "adversarial_sha256": _text},
    ),
    "protocol": _text,
    "n_samples": _whole(1),
    "repeats": _whole(1),
    "seed": _integer,
    "batch_size": _whole(1),
    "device": _text,
    "versions": _each(_text),
    "accuracy": _each(_ACCURACY),
    "attack": _maybe(_attack),
    "n_attacked": _maybe(_whole(1)),
    "perturbation": _maybe(_each(_each(_maybe(_number)))),
    "agreement": _maybe(_each(_MEASURE)),
    "transfer": _maybe(_table({})),
    "timing": _each(_maybe(_number)),
    "per_image": _maybe(_text),
    "per_example": _flag,
    "warnings": _texts,
    "gate": _maybe(_table({"threshold": _share, "bound": _maybe(_number), "verdict": _text})),
}
