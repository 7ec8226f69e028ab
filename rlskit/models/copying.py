"""Copies of a network whose tensors may be exchanged."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlskit.errors import RequestError, reason


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
            return copy.deepcopy(network, _empty_ones(network) | (memo or {}))
    except Exception as error:  # whatever one's own code keeps in a module
        if "allocate memory" in str(error):
            raise
        raise RequestError(
            f"{type(network).__name__} cannot be copied ({reason(error)}), as each draw of it is; "
            "keep locks, open files and the like outside the module"
        ) from error


def _empty_ones(network: nn.Module) -> dict[int, Any]:
    """Return by id what stands for each empty dict that a module has: most are for hooks.

    They are most of the objects in a network, and `copy.deepcopy` takes long over each.
    """
    return {
        id(value): type(value)()
        for module in network.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict) and not value
    }


class _ValuesAlone(TorchFunctionMode):
    """Lets `copy.deepcopy` copy a computed tensor without its graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            computed, memo = cast(tuple[Tensor, dict[int, Any]], args)
            memo[id(computed)] = computed.detach().clone()
            return memo[id(computed)]
        return func(*args, **(kwargs or {}))
