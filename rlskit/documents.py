"""Frozen dataclasses as JSON objects, and back from JSON that may come from anyone.

The fields and their types are all there is: `msgspec` checks a document against them and makes the
JSON Schema of them. What a newer version added to a document is not understood, but kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec

OPTIONAL = {"optional": True}
"""Metadata of a field, None by default, that is left out of the JSON where it is None."""

ASIDE = {"aside": True}
"""Metadata of a field that no document holds."""

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Above it, JSON's readers no longer agree on whole numbers."""

Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number within reason."""

Value = None | bool | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | Number | str
"""What an option may be."""

Place = tuple[str | int, ...]
"""The keys that lead to a value inside a document."""

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return a value, and all dataclasses in it, as JSON values; NaN and infinity become null."""
    if dataclasses.is_dataclass(value):
        found = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: to_json(one)
            for field, one in found.items()
            if "aside" not in field.metadata and not ("optional" in field.metadata and one is None)
        }
    if isinstance(value, Mapping):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def item(record: Any, name: str) -> Any:
    """Return a field by its name, so that results are read like their JSON.

    As `__getitem__` of a dataclass: `result.accuracy["robust"]["mean"]`.

    Raises:
        KeyError: There is no such field.
    """
    if name not in {field.name for field in dataclasses.fields(record)}:
        raise KeyError(name)
    return getattr(record, name)


def from_json(document: Any, kind: type[T]) -> T:
    """Return a JSON value as a dataclass; fields that it does not have are left out.

    Raises:
        ValueError: A field is missing or of another type; the message is a clause that says which.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "").replace("$.", "")) from error


def unknown(document: Any, known: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield what stands in a JSON value and not in another, and where."""
    pairs: Any = ()
    if isinstance(document, dict) and isinstance(known, dict):
        pairs = document.items()
    elif isinstance(document, list) and isinstance(known, list):
        pairs = enumerate(document[: len(known)])
    for key, value in pairs:
        if isinstance(known, dict) and key not in known:
            yield (*place, key), value
        else:
            yield from unknown(value, known[key], (*place, key))


def put_back(document: Any, place: Place, value: Any) -> None:
    """Put a value at its place inside a JSON value, if what it stood in is still there."""
    *above, last = place
    with suppress(IndexError, KeyError, TypeError):
        for key in above:
            document = document[key]
        document[last] = to_json(value)


def json_schema(kind: type, **more: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass's documents, which hold some more fields."""
    found = msgspec.json.schema(kind)
    own = found["$defs"][kind.__name__]
    hidden = {one.name for one in dataclasses.fields(kind) if "aside" in one.metadata}
    fields = {name: one for name, one in own["properties"].items() if name not in hidden}
    own |= {"properties": more | fields, "required": [*more, *own["required"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
