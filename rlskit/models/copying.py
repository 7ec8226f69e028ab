"""Copies of a network whose tensors may be exchanged."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlskit.errors import RequestError, reason

_CONSTANTS = frozenset(
    {bool, int, float, complex, str, bytes, type, NoneType, FunctionType, BuiltinFunctionType}
)
"""Types of what is its own copy."""

_CONTAINERS = frozenset({dict, OrderedDict, list, set})

_COMPILED = "_torchdynamo_orig_callable"
"""The attribute of a compiled function that holds the function, or the method of one module."""

_NEW: Any = nn.Module().__reduce_ex__(4)[0]
"""How Python makes an object that is no more than its attributes."""


def duplicate(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a network, also of one that keeps what it has computed.

    torch copies no tensor that a graph leads to, such as the weight that `weight_norm` and `prune`
    compute, or an output that a hook has kept: of those the copy holds the values.

    Args:
        network: Left as it is.
        memo: By id, what is to stand in the copy in an object's place.

    Raises:
        RequestError: It holds something that Python cannot copy.
    """
    try:
        with _ValuesAlone():
            return cast(nn.Module, _copied(network, dict(memo or {})))
    except Exception as error:  # whatever one's own code keeps in a module
        if "allocate memory" in str(error):
            raise
        raise RequestError(
            f"{type(network).__name__} cannot be copied ({reason(error)}), as each draw of it is; "
            "keep locks, open files and the like outside the module"
        ) from error


def uncompiled(function: Any) -> Any:
    """Return what `torch.compile` made a function of; anything else as it is.

    A compiled method, as in `self.forward = torch.compile(self.forward)`, is one of its first
    module, whoever it is copied for.
    """
    return vars(function)[_COMPILED] if _COMPILED in getattr(function, "__dict__", {}) else function


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return what `copy.deepcopy` would, several times as fast for what networks are made of.

    Those are modules, plain containers and constants; all else is left to it, with the same memo,
    so that what is held in two places is one object in the copy as well.
    """
    kind = type(value)
    if kind is FunctionType and _COMPILED in vars(value):
        return _copied(uncompiled(value), memo)
    if kind in _CONSTANTS or id(value) in memo:
        return memo.get(id(value), value)
    if kind in _CONTAINERS and not value:  # as most are: for the hooks of a module
        memo[id(value)] = made = kind()
    elif kind is dict:
        memo[id(value)] = made = {}
        made.update((_copied(name, memo), _copied(one, memo)) for name, one in value.items())
    elif kind is list:
        memo[id(value)] = made = []
        made.extend(_copied(one, memo) for one in value)
    elif kind is tuple and _CONSTANTS.issuperset(map(type, value)):
        made = value
    elif isinstance(value, nn.Module) and not _copies_itself(value):
        made = _copied_module(value, memo)
    else:
        made = copy.deepcopy(value, memo)
    return made


def _copies_itself(module: nn.Module) -> bool:
    """Whether a module has a way of its own to be copied, or what it stands for may have one."""
    kind: Any = type(module)
    own = hasattr(kind, "__deepcopy__") or "__deepcopy__" in vars(module)
    return own or kind.__getattr__ is not nn.Module.__getattr__


def _copied_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Copy a module by Python's protocol, where that asks for no more than its attributes."""
    asked: Any = module.__reduce_ex__(4)
    plain = asked[:2] == (_NEW, (type(module),)) and asked[3:] == (None, None)
    if not plain or type(asked[2]) is not dict:
        return copy.deepcopy(module, memo)
    made: Any = type(module).__new__(type(module))
    memo[id(module)] = made
    memo.setdefault(id(memo), []).append(asked)  # alive, as the ids of what it holds are known
    made.__setstate__({name: _copied(one, memo) for name, one in asked[2].items()})
    return made


class _ValuesAlone(TorchFunctionMode):
    """Lets `copy.deepcopy` copy a computed tensor without its graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            computed, memo = cast(tuple[Tensor, dict[int, Any]], args)
            memo[id(computed)] = computed.detach().clone()
            return memo[id(computed)]
        return func(*args, **(kwargs or {}))
