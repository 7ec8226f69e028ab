"""A result read back from JSON that may come from anyone: each field is what it must be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlskit.documents import from_json, to_json, unknown
from rlskit.errors import RequestError, reason
from rlskit.results.result import SCHEMA, Result
from rlskit.storage.files import parse_json

_ADVICE = "name a run's folder or its results.json"
_LARGEST_FILE = 2**28  # bytes; a result has a few thousand, with matrices a few million


def read_results(file: Path) -> list[Result]:
    """Read a file of one result or several; what newer versions add is kept.

    Raises:
        RequestError: It is not there, or holds anything else, or results of another major version.
    """
    found = read_json(file)
    return results_in(found if isinstance(found, list) and found else [found], file)


def read_json(file: Path) -> Any:
    """Return what a JSON file from anyone holds; all its numbers are finite.

    Raises:
        RequestError: It is not there, too large, or no JSON.
    """
    try:
        if file.stat().st_size > _LARGEST_FILE or not file.is_file():
            raise RequestError(f"{file} is no file of results; {_ADVICE}")
        text = file.read_text(encoding="utf-8")
        return parse_json(text, parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError as error:
        raise RequestError(f"there is no {file}; {_ADVICE}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        why = reason(error)
        raise RequestError(f"{file} cannot be read as results ({why}); {_ADVICE}") from error


def results_in(objects: Sequence[Any], file: Path) -> list[Result]:
    """Return JSON values as results; the `schema` is taken out of each.

    Args:
        objects: The values.
        file: Where they were read, for messages.

    Raises:
        RequestError: One is no result, or of another major version.
    """
    for one in objects:
        _check_schema(one, file)
    try:
        return [_result(one) for one in objects]
    except ValueError as error:
        why = reason(error)
        raise RequestError(f"{file} is not a result of {SCHEMA} ({why}); {_ADVICE}") from error


def _check_schema(found: Any, file: Path) -> None:
    """Require a result of the major version that this rlskit writes.

    Raises:
        RequestError: It is another one, or no result.
    """
    schema = found.pop("schema", None) if isinstance(found, dict) else None
    kind, _, version = str(schema).partition("/")
    if kind == SCHEMA.partition("/")[0] and schema != SCHEMA:
        raise RequestError(
            f"{file} holds results of version {version}, and this rlskit reads {SCHEMA} only; use "
            "the rlskit that wrote it, or a newer one"
        )
    if schema != SCHEMA:
        raise RequestError(f"{file} does not hold results of the schema {SCHEMA}; {_ADVICE}")


def _result(document: dict[str, Any]) -> Result:
    """Return a result, and beside it what this version does not know.

    Raises:
        ValueError: A field is missing or wrong.
    """
    own = {field.name for field in dataclasses.fields(Result)} - {"newer"}
    result = from_json({name: one for name, one in document.items() if name in own}, Result)
    if result.command != "diversity" and not {"clean", "robust"} & result.accuracy.keys():
        raise ValueError("accuracy is neither of clean images nor robust")
    return dataclasses.replace(result, newer=tuple(unknown(document, to_json(result))))


def _finite(text: str) -> float:
    """Return the number of a text; results hold no NaN, and no 1e999 either."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number of a result's")
    return float(text)
