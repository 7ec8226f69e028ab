"""In which order, and as what, a network uses its tensors: one observed forward pass.

Module hooks would miss the families that read `qkv.weight` or a bias table directly, so the pass is
observed at the level of torch functions (`torch.overrides.TorchFunctionMode`). It runs on the meta
device: no arithmetic, no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rlskit.errors import RequestError, reason
from rlskit.models.copying import duplicate
from rlskit.models.outputs import HeadlessError, key_of, reading_of, tensor_at
from rlskit.models.streams import kept, sources_of

_MAPS = {"conv1d", "conv2d", "conv3d", "convolution", "linear", "bilinear"} | {
    f"conv_transpose{n}d" for n in (1, 2, 3)
}
_PRODUCTS = {
    "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "einsum",
    "inner", "tensordot", "multi_dot",
}  # fmt: skip
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"} | {
    f"{cell}_cell" for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}
_ATTENTION_WEIGHTS = (5, 11)  # positions of in_proj_weight and out_proj_weight
_ATTENTION_KEYWORDS = (
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight",
)  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What one forward pass of a network shows.

    Attributes:
        uses: Names of the parameters and buffers in order of their first use. Tied tensors stand
            under all their names, side by side.
        weights: The parameters that a convolution, linear map or matrix product takes as its
            weight, also after reshaping or standardisation.
        output: Shape of the network's output, `[B, classes]` for a classifier.
        key: Of that output, where the network answers with several tensors.
    """

    uses: tuple[str, ...]
    weights: frozenset[str]
    output: tuple[int, ...]
    key: str = ""


def tensor_names(network: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer by its state-dict name, tied ones repeated."""
    named: dict[str, Tensor] = {}
    _name_tensors(network, "", named)
    return named


def inexact(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that hold real or complex numbers: others are no weights to move."""
    found = network.parameters()
    return [one for one in found if one.is_floating_point() or one.is_complex()]


def _name_tensors(module: nn.Module, dot: str, named: dict[str, Tensor]) -> None:
    """Put a module's tensors into `named`, and then those of what it holds, with `dot` before."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            named[dot + name] = parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            named[dot + name] = buffer
    for name, part in module._modules.items():
        if part is not None:
            _name_tensors(part, f"{dot}{name}.", named)


def trace(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    key: str = "",
    classes: int | None = None,
) -> Trace:
    """Observe one forward pass in eval mode on two meta images of `image_shape` `(C, H, W)`.

    Networks that cannot run on the meta device (they look at values) run on their own device, on
    random images.

    Args:
        network: The network; it is not changed.
        image_shape: `(C, H, W)`.
        key: Of the tensor that holds the classes, where it answers with several; "" for that of
            `key_of`.
        classes: Number of classes, which tells that tensor; None for any.

    Raises:
        HeadlessError: The network answers with features.
        RequestError: The network cannot process such images, or does not answer with a tensor.
    """
    tensors = [*network.parameters(), *network.buffers()]
    is_on_meta = bool(tensors) and all(tensor.is_meta for tensor in tensors)
    try:
        on_meta = network if is_on_meta else meta_copy(network)
        with torch.device("meta"):
            return _observe(on_meta, torch.empty(2, *image_shape, device="meta"), key, classes)
    except RequestError:
        raise
    except Exception as error:  # whatever a forward pass raises on images of the wrong size
        device = next((t.device for t in network.parameters()), torch.device("cpu"))
        if device.type == "meta":
            raise unusable(network, image_shape, error) from error
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        with kept(sources_of(network)):
            return _observe(duplicate(network), images.to(device), key, classes)
    except RequestError:
        raise
    except Exception as error:
        raise unusable(network, image_shape, error) from error


def meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the network that shares no storage and holds its tensors on meta."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(
                    torch.empty_like(tensor, device="meta"), requires_grad=tensor.requires_grad
                )
            elif isinstance(tensor, Tensor):
                memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return duplicate(network, memo)


def unusable(network: nn.Module, shape: tuple[int, int, int], error: Exception) -> RequestError:
    """Return what to say of a network whose forward pass failed on images of `shape` (C, H, W)."""
    channels, height, width = shape
    return RequestError(
        f"{type(network).__name__} cannot process images of {channels}x{height}x{width} "
        f"({reason(error)}); if it is made for others, choose another `image_size` or `in_chans`, "
        "other `mean` and `std`, and no `small_images`"
    )


def _observe(network: nn.Module, images: Tensor, key: str, classes: int | None) -> Trace:
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in tensor_names(network).items():
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    constants = [b for b in network.buffers() if id(b) not in names]
    observer = _Observer(names, constants)
    network.eval()
    with observer:
        output = network(images.to(reading_of(network).dtype))
    try:
        key = key or key_of(output, len(images), classes)
        logits = tensor_at(output, key)
        if logits.ndim != 2 or len(logits) != len(images):
            raise HeadlessError(f"{key} is of shape {list(logits.shape)}, not [B, classes]")
    except HeadlessError as error:
        raise HeadlessError(
            f"{type(network).__name__} has no classification head: {error}; choose another model"
        ) from error
    return Trace(tuple(observer.uses), frozenset(observer.weights), tuple(logits.shape), key)


class _Observer(TorchFunctionMode):
    """Follows tensors that depend on parameters alone from their first use to a weight's place."""

    def __init__(self, names: dict[int, tuple[str, ...]], constants: list[Tensor]) -> None:
        super().__init__()
        self.uses: dict[str, None] = {}
        self.weights: set[str] = set()
        self._names = names
        self._size: dict[str, int] = {}
        # Tensors made from parameters and constants only: id -> the names they were made from.
        self._sources = names | {id(c): () for c in constants}
        self._alive: list[object] = []  # ids are only unique among living objects

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and args[0].is_meta:
            result = torch.empty_like(args[0])  # the meta kernel is written in Python, and slow
        else:
            result = func(*args, **kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if results:
            self._note_uses(operands)
            self._note_weights(
                func.__name__.partition(".")[0], args, kwargs
            )  # aten: conv2d.default
            self._note_results(operands, results)
        return result

    def _note_uses(self, operands: list[Tensor]) -> None:
        for operand in operands:
            for name in self._names.get(id(operand), ()):
                self.uses.setdefault(name)
                if isinstance(operand, nn.Parameter):  # a fixed filter is nothing to sample
                    self._size.setdefault(name, operand.numel())

    def _note_weights(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        weights: list[Any] = []
        if function in _MAPS:
            weights = [kwargs.get("weight"), *args[1:2]]
        elif function in _PRODUCTS:
            weights = tree_leaves((args, kwargs))
        elif function in _RECURRENT:
            operands = tree_leaves((args, kwargs))
            weights = [w for w in operands if isinstance(w, Tensor) and w.ndim > 1]
        elif function == "multi_head_attention_forward":
            weights = [args[i] for i in _ATTENTION_WEIGHTS if i < len(args)]
            weights += [kwargs.get(name) for name in _ATTENTION_KEYWORDS]
        for weight in weights:
            if isinstance(weight, Tensor):
                # A standardised weight is made from the weight and its gain: the larger is meant.
                sources = [n for n in self._sources.get(id(weight), ()) if n in self._size]
                if sources:
                    self.weights.update(self._aliases(max(sources, key=self._size.__getitem__)))

    def _aliases(self, name: str) -> tuple[str, ...]:
        return next(names for names in self._names.values() if name in names)

    def _note_results(self, operands: list[Tensor], results: list[Tensor]) -> None:
        if all(id(operand) in self._sources for operand in operands):
            sources = tuple(dict.fromkeys(n for o in operands for n in self._sources[id(o)]))
            for result in results:
                self._sources.setdefault(id(result), sources)
        else:
            for result in results:
                if id(result) not in self._names:
                    self._sources.pop(id(result), None)  # written in place with an image's values
        self._alive.append(results)
