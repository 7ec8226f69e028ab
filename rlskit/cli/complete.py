"""What the shell completes: names that are read from sources, as to import torch takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
_REGISTERED = re.compile(r"^@register_model\b(?:.*\n){1,9}?def (\w+)\(", re.MULTILINE)

Completion = list[str]

_FILES = (".pt2", ".py", ".safetensors")
"""Endings of what may be a network of one's own."""


def methods(incomplete: str) -> Completion:
    """Complete an attack, also behind a comma."""
    return _listed(_names("attacks/catalogue.py", "ATTACKS"), incomplete)


def engines(incomplete: str) -> Completion:
    """Complete an engine of attacks."""
    return _of(_names("attacks/prepared.py", "ENGINES"), incomplete)


def protocols(incomplete: str) -> Completion:
    """Complete a protocol."""
    names = (*_names("threat/view.py", "PROTOCOLS"), *_names("threat/adaptive.py", "PROTOCOL"))
    return _of(names, incomplete)


def defenses(incomplete: str) -> Completion:
    """Complete a defense."""
    return _of(_names("defenses/catalogue.py", "DEFENSES"), incomplete)


def data(incomplete: str) -> Completion:
    """Complete a data set: its name, or the folder or file that it is."""
    kinds = _names("data/sources.py", "KINDS")
    kind, colon, path = incomplete.partition(":")
    if colon and kind in kinds:
        found = Path(path).parent.glob("*") if not path.endswith("/") else Path(path).glob("*")
        places = [f"{one}/" if one.is_dir() else str(one) for one in sorted(found)]
        return _of([f"{kind}:{place}" for place in places], incomplete)
    return _of([*_names("data/named.py", "DATASETS"), *(f"{one}:" for one in kinds)], incomplete)


def networks(incomplete: str) -> Completion:
    """Complete a network of timm or torchvision by its name, or a file of one's own."""
    timm = _registered("timm")
    torchvision = [
        f"torchvision:{name}" if name in timm else name
        for name in sorted(_registered("torchvision"))
    ]
    files = sorted(str(file) for file in Path().glob("*") if file.suffix in _FILES)
    return _of([*sorted(timm), *torchvision, *files], incomplete)


def recipes(incomplete: str) -> Completion:
    """Complete a recipe: a file, or the name of one that rlskit brings."""
    packaged = _PACKAGE / "recipes" / "files"  # as in rlskit.recipes.shipped
    root = packaged if packaged.is_dir() else _PACKAGE.parent / "recipes"
    shipped = [
        f"{folder}/{file.stem}"
        for folder in _names("recipes/shipped.py", "ABOUT")
        for file in sorted((root / folder).glob("*.toml"))
    ]
    return _of([*sorted(map(str, Path().glob("*.toml"))), *shipped], incomplete)


def _of(names: list[str] | tuple[str, ...], incomplete: str) -> Completion:
    return [name for name in names if name.startswith(incomplete)]


def _listed(names: tuple[str, ...], incomplete: str) -> Completion:
    """Complete the last of several names with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _of(names, last)]


def _names(file: str, variable: str) -> tuple[str, ...]:
    """Return the keys of a dict, the parts of a tuple, or a text, all literal.

    Raises:
        LookupError: There is none of that name.
    """
    for node in ast.parse((_PACKAGE / file).read_text(encoding="utf-8")).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ) if name == variable:
                parts: Iterable[Any] = (
                    value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [value])
                )
                return tuple(ast.literal_eval(part) for part in parts)
    raise LookupError(f"{file} has no {variable}")


def _registered(library: str) -> set[str]:
    """Return the networks that a library's sources register."""
    spec = find_spec(library)  # which imports nothing
    if spec is None or spec.origin is None:
        return set()
    found: set[str] = set()
    for file in (Path(spec.origin).parent / "models").glob("*.py"):
        found.update(_REGISTERED.findall(file.read_text(encoding="utf-8")))
    return found
