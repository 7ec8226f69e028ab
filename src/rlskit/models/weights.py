"""Weight files from elsewhere: safetensors, or a .pth that holds nothing but tensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlskit.errors import RequestError, reason
from rlskit.models.trace import tensor_names

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_SHOWN = 5


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; wrappers (`state_dict`, `model`) and a `module.` prefix are taken off.

    Args:
        path: A safetensors file, or one that `torch.load(weights_only=True)` reads.

    Raises:
        RequestError: It is missing, damaged, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"there is no weight file {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise RequestError(f"{path} holds no state dict")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def load_weights(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy a state dict into a network, strictly.

    Only `num_batches_tracked`, which old checkpoints lack, may be missing.

    Args:
        network: Is changed in place.
        tensors: As `read_weights` gave them.
        where: Names the source in the error.

    Raises:
        RequestError: Something is missing, unexpected, of another shape, or integers where the
            network has floating-point numbers; the first are named.
    """
    wanted = tensor_names(network)
    by_tensor = {id(wanted[name]) for name in tensors if name in wanted}
    missing = [
        name
        for name, tensor in wanted.items()
        if id(tensor) not in by_tensor and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in tensors if name not in wanted]
    reshaped = [
        f"{name} is {list(tensors[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    integers = [
        name
        for name, tensor in wanted.items()
        if name in tensors and tensor.is_floating_point() and not tensors[name].is_floating_point()
    ]
    odd = {
        "lacks": missing,
        "has another shape:": reshaped,
        "has also": unexpected,
        "is quantized, with integers in": integers,
    }
    for kind, names in odd.items():
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise RequestError(
                f"{where} does not fit {type(network).__name__}: it {kind} "
                f"{', '.join(names[:_SHOWN])}{more}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise RequestError(f"{path} is not a readable safetensors file ({error})") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        more = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        why = "it holds more than tensors" if more else reason(error)
        raise RequestError(
            f"{path} cannot be read as plain weights ({why}); save it as safetensors"
        ) from error
    if not isinstance(state, dict):
        raise RequestError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state
