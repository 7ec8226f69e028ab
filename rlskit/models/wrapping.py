"""A module in memory as a model of one bank, which holds the module's own parameters and buffers.

The bank is a second body around the same tensors: it has modes, hooks and attributes of its own, so
that measuring leaves the module as it was, and training trains it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from rlskit.errors import RequestError, RlskitError, reason
from rlskit.models.architecture import MEMORY, Architecture
from rlskit.models.banks import BankedModel, Card
from rlskit.models.copying import duplicate
from rlskit.models.outputs import ONE_NUMBER, HeadlessError, check_outputs, key_of, kind_of
from rlskit.models.partition import Layer, Partition
from rlskit.models.streams import sources_of, streamed
from rlskit.models.trace import tensor_names
from rlskit.pixels import Pixels
from rlskit.storage.files import tensor_bytes

_MODAL = (_DropoutNd, _NormBase)
"""Modules that do something else in train mode."""


def wrap(
    module: nn.Module,
    shape: tuple[int, int, int] | None = None,
    *,
    images: Tensor | None = None,
    classes: int | None = None,
    outputs: str = "",
    output_key: str = "",
    defense: str = "none",
) -> BankedModel:
    """Return a module in memory as a model of one bank, which every function of rlskit takes.

    It shares the module's tensors. It answers in eval mode, whatever mode the module is in, and is
    on the module's device: move the module, not the model. No file can hold it.

    Args:
        module: Images `[B, C, H, W]` in [0, 1] to logits `[B, classes]`. What `DataParallel` and
            `torch.compile` put around it is left out.
        shape: `(C, H, W)` of the images.
        images: Some images, in the place of `shape`.
        classes: Number of classes; by default the number that the module answers with.
        outputs: What it answers with, one of `rlskit.models.outputs.OUTPUTS`; by default what its
            last step or its answers show.
        output_key: Which of several tensors holds the classes, as `logits` or `0`; by default the
            one called logits, or the first of a tuple.
        defense: `stochastic` for a module whose forward pass draws random numbers.

    Raises:
        RequestError: It is no such module, or cannot be copied around its tensors.
    """
    if isinstance(module, BankedModel) or not isinstance(module, nn.Module):
        raise RequestError(f"a module to wrap is a torch.nn.Module, not a {type(module).__name__}")
    if shape is None and images is None:
        raise RequestError("a module does not say what images it takes; give their shape (C, H, W)")
    channels, height, width = shape if images is None else images.shape[1:]  # type: ignore[misc]
    inner = _inner(module)
    _check_ready(inner)
    pixels = Pixels(channels, height, width, (0.0,) * channels, (1.0,) * channels)
    architecture = Architecture(MEMORY, type(inner).__name__)
    check_outputs(outputs)
    card = Card(
        architecture, pixels, classes or 0, defense=defense, pretrained=MEMORY, outputs=outputs,
        output_key=output_key,
    )  # fmt: skip
    layer = Layer("model", tuple(tensor_names(inner)))
    model = BankedModel([_second_body(inner)], Partition("model", (layer,)), card)
    _introduce(model, classes)
    model.warnings = _warnings(module)
    return model


@torch.no_grad()
def give_back(model: BankedModel, module: nn.Module) -> None:
    """Copy into a module the buffers that its model has replaced by others while it was trained."""
    mine = tensor_names(_inner(module))
    for name, tensor in tensor_names(model.banks[0]).items():
        if tensor is not mine[name]:
            mine[name].copy_(tensor)


def _inner(module: nn.Module) -> nn.Module:
    """Return the module without what only spreads or compiles it."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _inner(module.module)
    if type(module).__name__ == "OptimizedModule":  # whose home takes a second to import
        return _inner(module.get_submodule("_orig_mod"))
    return module


def _check_ready(module: nn.Module) -> None:
    """Require tensors that hold values.

    Raises:
        RequestError: One has yet to see an image, or to be loaded.
    """
    for name, tensor in tensor_names(module).items():
        if is_lazy(tensor) or tensor.is_meta:
            raise RequestError(
                f"{name} of {type(module).__name__} has no values yet; load its weights, or show "
                "it an image, first"
            )


def _second_body(module: nn.Module) -> nn.Module:
    """Return a copy of everything but the parameters and persistent buffers, which are shared.

    Raises:
        RequestError: Something in it cannot be copied, or the copy has tensors of its own.
    """
    tensors = tensor_names(module)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors.values()}
    body = duplicate(module, memo)
    found = tensor_names(body)
    if found.keys() != tensors.keys() or any(found[name] is not tensors[name] for name in tensors):
        raise RequestError(
            f"{type(module).__name__} cannot share its tensors with a copy, as TorchScript cannot; "
            "give the module that it was made from"
        )
    return body


@torch.no_grad()
def _introduce(model: BankedModel, classes: int | None) -> None:
    """Write into the card what the answer to two random images shows.

    Raises:
        RequestError: The module cannot take them, or answers with something else.
    """
    card, device = model.card, model.device
    images = torch.rand(2, *card.pixels.shape, generator=torch.Generator().manual_seed(0))
    images, plan = images.to(device), torch.zeros(1, dtype=torch.long)
    with streamed(sources_of(model.banks[0]), 0):  # of a network with noise of its own
        try:
            network, inputs = model.sampled(plan).network, images.to(model.reading.dtype)
            card.output_key = card.output_key or key_of(network(inputs), 2, classes)
            card.outputs = card.outputs or kind_of(network, inputs, card.output_key)
            logits = model.sampled(plan)(images)
        except HeadlessError as error:
            raise RequestError(f"{card.architecture.name} is no classifier: {error}") from error
        except RlskitError as error:
            raise RequestError(f"{card.architecture.name}: {error}") from error
        except (Exception, SystemExit) as error:  # whatever a forward pass raises
            raise RequestError(
                f"{card.architecture.name} cannot process images of "
                f"{'x'.join(map(str, card.pixels.shape))} ({reason(error)}); images are "
                "[n, C, H, W]"
            ) from error
    if logits.shape[1:] == (1,):
        raise RequestError(f"{card.architecture.name} {ONE_NUMBER}")
    card.classes = logits.shape[1]
    if logits.ndim != 2 or classes not in (None, card.classes):
        raise RequestError(
            f"{card.architecture.name} answers two images with {list(logits.shape)}, not "
            f"[2, {classes or 'classes'}]"
        )
    card.architecture = replace(card.architecture, digest=_digest(model.banks[0], logits))


def _digest(module: nn.Module, logits: Tensor) -> str:
    """Return a sha256 of what no tensor shows of a module: the code of its classes, its answer."""
    digest = hashlib.sha256()
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if not kind.__module__.startswith("torch."):
            with contextlib.suppress(OSError, TypeError):  # typed into an interpreter
                digest.update(inspect.getsource(kind).encode())
    scaled = logits.double() / logits.abs().amax().clamp_min(1e-30)
    digest.update(tensor_bytes((1000 * scaled.nan_to_num()).round()))
    return digest.hexdigest()


def _warnings(module: nn.Module) -> tuple[str, ...]:
    """Return what a reader must know: what depends on its mode was in another when it came."""
    parts = [part for part in module.modules() if part.training and isinstance(part, _MODAL)]
    if not parts:
        return ()
    kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
    return (f"The module came in train mode ({kinds}); it is measured in eval mode.",)
