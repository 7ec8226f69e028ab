"""Where two networks of one architecture differ besides their registered tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 6


def unregistered(first: nn.Module, second: nn.Module) -> list[str]:
    """Return the attributes in which two networks with the same state dict differ.

    Tensors, arrays, modules, random generators, and what holds them: lists, dicts, objects and the
    variables of a function. Empty where nothing of that kind is found.
    """
    found = []
    for (path, one), other in zip(first.named_modules(), second.modules(), strict=False):
        dot = f"{path}." if path else ""
        for name, value in _attributes(one).items():
            if not _same(value, _attributes(other).get(name), _DEPTH):
                found.append(dot + name)
    return sorted(found, key=lambda name: name.rpartition(".")[2].startswith("_"))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what no state dict holds: plain attributes, and buffers that are not saved."""
    plain = {k: v for k, v in vars(module).items() if k not in _REGISTRIES}
    unsaved = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
    return {**plain, **unsaved}


_REGISTRIES = {"_parameters", "_buffers", "_modules"}


def _same(a: Any, b: Any, depth: int) -> bool:
    if a is b or depth == 0:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, np.random.Generator):
        return bool(a.bit_generator.state == b.bit_generator.state)
    if isinstance(a, random.Random):
        return bool(a.getstate() == b.getstate())
    if isinstance(a, str | bytes | int | float | complex):
        return bool(a == b)
    return _same_parts(_parts(a), _parts(b), depth - 1)


def _same_parts(a: dict[Any, Any], b: dict[Any, Any], depth: int) -> bool:
    return len(a) == len(b) and all(key in b and _same(a[key], b[key], depth) for key in a)


def _parts(value: Any) -> dict[Any, Any]:
    """Return what an object is made of, by place or name."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, FunctionType):
        return {i: _content(cell) for i, cell in enumerate(value.__closure__ or ())}
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, **value.keywords}
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    return dict(getattr(value, "__dict__", {}))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
