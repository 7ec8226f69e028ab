"""From a TOML file to one table of values: what it extends, and `--set`."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlskit.errors import RequestError

_MOST_FILES = 100
_HERE = "${HERE}"
_DATA_DIR = re.compile(r"\$\{RLSKIT_DATA_DIR:-([^}]*)\}")
_LARGEST = 2**18  # bytes
_LONGEST = 2**13  # characters in a line: of a dotted key, tomllib's time grows with the square


def read(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a recipe, merged with those of the files it extends.

    Args:
        path: The TOML file. `extends` names another, relative to this one, or a list of several, of
            which later ones win; what this one says wins over all.
        sets: `KEY=VALUE` changes that win over all files: a dotted key, and a TOML value; what is
            no TOML value is a string.

    Raises:
        RequestError: A file is missing, is no TOML, or extends itself; or a change is no
            `KEY=VALUE`.
    """
    try:
        values = _merged_file(path, (), itertools.count(1))
        for change in sets:
            values = merged(values, _change(change))
    except RecursionError as error:
        raise RequestError(f"the recipe {path}, or `sets`, nests tables too deeply") from error
    return values


def texts(sets: Sequence[str]) -> frozenset[str]:
    """Return all strings among the values of `KEY=VALUE` changes."""
    found: set[str] = set()
    waiting: list[Any] = [_change(change) for change in sets]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return frozenset(found)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both tables as one: tables are merged key by key, of anything else `above` wins."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _merged_file(path: Path, extended_by: tuple[Path, ...], count: Iterator[int]) -> dict[str, Any]:
    if next(count) > _MOST_FILES:  # few files can extend each other in very many ways
        raise RequestError(f"the recipe reads more than {_MOST_FILES} files; extend fewer")
    where = path.resolve()
    if where in extended_by:
        chain = " -> ".join(file.name for file in (*extended_by, where))
        raise RequestError(f"the recipe extends itself: {chain}; remove one 'extends'")
    values = _parsed(path)
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise RequestError(f"{path}: extends is the name of a file, or a list of some, not {bases}")
    below: dict[str, Any] = {}
    for base in bases:
        below = merged(below, _merged_file(path.parent / base, (*extended_by, where), count))
    return merged(below, values)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST):
            raise RequestError(f"{path} is no file of a recipe: it is no file, or too large")
        text = path.read_text(encoding="utf-8")
        if max(map(len, text.splitlines()), default=0) > _LONGEST:
            raise RequestError(f"{path} is no file of a recipe: a line is too long")
        found: dict[str, Any] = _expanded(tomllib.loads(text), path)
        return found
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(f"the recipe {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # TOML's and UTF-8's
        raise RequestError(f"the recipe {path} is no valid TOML: {error}") from error


def _expanded(value: Any, path: Path) -> Any:
    """Return a value with the places filled in that only the machine or the file knows.

    `${HERE}` is the folder of the file; `${RLSKIT_DATA_DIR:-FOLDER}` that of the environment, or
    FOLDER where it names none.
    """
    if isinstance(value, Mapping):
        return {key: _expanded(one, path) for key, one in value.items()}
    if isinstance(value, list):
        return [_expanded(one, path) for one in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if value.startswith(_HERE):
        value = os.path.normpath(path.parent / value.removeprefix(_HERE).lstrip("/"))
    return _DATA_DIR.sub(lambda found: os.environ.get("RLSKIT_DATA_DIR") or found[1], value)


def _change(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RequestError(f"`sets` {text!r} is no KEY=VALUE such as train.epochs=1")
    try:
        change: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        change = value.strip()
    for part in reversed(parts):
        change = {part: change}
    assert isinstance(change, dict)
    return change
