"""Changes that anyone may have made to a file: to its bytes, or to one place of its JSON value."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    None, True, 0, -1, 2.5, 1e308, float("nan"), float("inf"), 10**12, 2**64, 10**400, "", "x",
    "\x1b[31m", "\ud800", [], {}, [[]], [None], [1, 2, 3], {"a": 1},
]  # fmt: skip
TEXTS = [b"9" * 30, b"nan", b"-1", b"1e999", b'"', b"\x00", b"\n\n", b"[[", b"{{", b"true", b"''"]
WHOLE = [b"[" * 100_000, b'{"a":' * 100_000, b"a=" + b"[" * 7000, b"", b"\xff\xfe", b"null", b"0"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values inside a JSON value."""
    children: Any = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(value: Any, chance: random.Random) -> str:
    """Return the JSON text of a value in which one place is left out, or is something else."""
    value = copy.deepcopy(value)
    *above, last = chance.choice(list(places(value)))
    table = value
    for key in above:
        table = table[key]
    if chance.random() < 0.2:
        del table[last]
    elif chance.random() < 0.1:
        return json.dumps(value).replace("1", "[" * 200 + "]" * 200, 1)
    else:
        table[last] = chance.choice(VALUES)
    return json.dumps(value)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes of which some are flipped, left out, or replaced."""
    at, how = chance.randrange(len(data)), chance.random()
    if how < 0.4:
        flipped = bytearray(data)
        for _ in range(chance.choice([1, 3, 10])):
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if how < 0.6:
        return data[:at] + data[at + chance.randrange(1, 60) :]
    if how < 0.9:
        return data[:at] + chance.choice(TEXTS) + data[at + 1 :]
    return chance.choice([data[:at], *WHOLE])
