"""Build the network that an architecture describes, after fitting the architecture to a task."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from rlskit.errors import RequestError, RlskitError, RunError, reason
from rlskit.models import own
from rlskit.models.architecture import Architecture
from rlskit.models.copying import uncompiled
from rlskit.models.hub_folder import build_from_folder
from rlskit.models.outputs import reading_of
from rlskit.models.programs import read_program
from rlskit.models.published import WITH_AUXILIARY_HEADS, load_torchvision_weights
from rlskit.models.small_images import adapt_to_small_images
from rlskit.models.stem import set_input_channels
from rlskit.models.streams import kept, sources_of
from rlskit.models.trace import unusable
from rlskit.torchvision_ops import declare_missing_operators

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_COMPILED = "_orig_mod"
"""The attribute of `torch.compile`'s module that holds the network."""


def configure(
    architecture: Architecture,
    *,
    classes: int | None,
    channels: int | None,
    image_size: tuple[int, int] | None,
    small_images: bool = False,
    transform_input: bool = False,
) -> Architecture:
    """Complete an architecture for a task; what the library has an argument for goes there.

    Args:
        architecture: As `resolve` gave it.
        classes: Number of classes, or None for the library's own.
        channels: Number of image channels, or None for the library's own.
        image_size: Height and width, or None for the library's own.
        small_images: Change stem and head for small images.
        transform_input: The images are to be normalised once more, as torchvision's own weights of
            GoogLeNet and Inception want them.

    Raises:
        RequestError: The network cannot be built so.
    """
    accepted: dict[str, Any] = {}
    for name, value in _wanted(architecture.source, classes, channels, image_size).items():
        if value is not None and _takes(replace(architecture, kwargs=accepted), name, value):
            accepted[name] = value
    if architecture.source == "torchvision" and architecture.name in WITH_AUXILIARY_HEADS:
        accepted["init_weights"] = True  # torchvision warns unless it is told
        if transform_input:
            accepted["transform_input"] = True
    in_chans = channels if channels and "in_chans" not in accepted else None
    if in_chans and image_size and architecture.source == "own":
        as_it_is = replace(architecture, kwargs=accepted)
        in_chans = None if _answers(as_it_is, (in_chans, *image_size)) else in_chans
    return replace(architecture, kwargs=accepted, in_chans=in_chans, small_images=small_images)


def build(
    architecture: Architecture,
    image_shape: tuple[int, int, int] | None = None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """Build one network; its random initialisation uses the global generator.

    Args:
        architecture: As `configure` completed it.
        image_shape: `(C, H, W)`, which lazy layers take their shapes from.
        pretrained: Load the library's weights (timm, torchvision).

    Raises:
        RequestError: The library refuses, or has no such weights.
        RunError: The weights cannot be downloaded.
    """
    network = _factory(architecture, pretrained, image_shape)
    if architecture.source == "own" and not architecture.is_program:
        network = _plain(network, architecture.name)
    if architecture.in_chans is not None:
        set_input_channels(network, architecture.in_chans)
    if architecture.small_images:
        adapt_to_small_images(network)
    if image_shape is not None and any(map(is_lazy, network.parameters())):
        _materialise(network, image_shape)
    return network


def build_on_meta(
    architecture: Architecture, image_shape: tuple[int, int, int] | None = None
) -> nn.Module:
    """Build one network without memory or arithmetic for its weights; one's own with real ones.

    Some factories read values off small tensors that they make (torchvision's RegNets), which only
    parameters on meta allow. One's own code may look at any value, or load a file.

    Args:
        architecture: As `configure` completed it.
        image_shape: `(C, H, W)`, which lazy layers take their shapes from.

    Raises:
        RequestError: The network cannot be built so.
    """
    with kept(sources_of()):
        if architecture.source == "own":
            return build(architecture, image_shape)
        with contextlib.suppress(RequestError), torch.device("meta"):
            return build(architecture)
        with _EmptyOnMeta():
            return build(architecture)


class _EmptyOnMeta(TorchFunctionMode):
    """Sends only what `torch.empty` makes to the meta device: all of torch.nn's parameters."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _wanted(
    source: str, classes: int | None, channels: int | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the arguments that a factory of this source may take."""
    if source == "torchvision":
        side = size[0] if size else None
        return {"num_classes": classes, "image_size": side, "input_size": size}
    return {"num_classes": classes, "in_chans": channels, "img_size": size}


def _takes(architecture: Architecture, argument: str, value: object) -> bool:
    """Whether the library's factory accepts one more argument."""
    if architecture.source == "own":
        return own.takes(architecture.name, architecture.digest, argument)
    if argument in ("num_classes", "in_chans"):
        return True
    try:
        build_on_meta(replace(architecture, kwargs={**architecture.kwargs, argument: value}))
    except RequestError as error:
        if isinstance(error.__cause__, TypeError):
            return False
        raise
    return True


def _answers(architecture: Architecture, image_shape: tuple[int, int, int]) -> bool:
    """Whether one's own network takes images of `(C, H, W)`, whatever its first convolution reads.

    That may read gray made of colours, or not be the first to run.
    """
    try:
        network = build_on_meta(architecture, image_shape).eval()
        images = torch.zeros(2, *image_shape, dtype=reading_of(network).dtype)
        with torch.no_grad(), own.heard(), kept(sources_of(network)):
            network(images)
    except Exception:  # whatever one's own code raises on images of another number of channels
        return False
    return True


def _factory(
    architecture: Architecture, pretrained: bool, image_shape: tuple[int, int, int] | None
) -> nn.Module:
    declare_missing_operators()
    name, kwargs = architecture.name, architecture.kwargs
    try:
        network = _called(architecture, pretrained, image_shape)
    except (RlskitError, MemoryError):
        raise
    except OSError as error:
        if architecture.source == "own":
            raise RequestError(
                f"{name} cannot be built: its factory wants a file that cannot be read "
                f"({_with_file(error)})"
            ) from error
        if not pretrained:
            raise
        raise RunError(
            f"the weights of {name} are not here and cannot be downloaded ({reason(error)})"
        ) from error
    except Exception as error:  # what a factory raises, of a library or one's own, is up to it
        if "allocate memory" in str(error):
            raise
        with_what = f" with {kwargs}" if kwargs else ""
        raise RequestError(f"{name} cannot be built{with_what} ({reason(error)})") from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _called(
    architecture: Architecture, pretrained: bool, image_shape: tuple[int, int, int] | None
) -> Any:
    name, kwargs = architecture.name, dict(architecture.kwargs)
    if architecture.is_program:
        path = own.place_of(name, architecture.digest)
        return read_program(path, architecture.digest, image_shape)
    if architecture.is_hub_folder:
        with own.heard():
            path = own.place_of(name, architecture.digest)
            return build_from_folder(path, pretrained=pretrained)
    if architecture.source == "own":
        with own.heard():
            return own.factory(name, architecture.digest)(**kwargs)
    if architecture.source == "timm":
        import timm

        return timm.create_model(name, pretrained=pretrained, **kwargs)
    import torchvision

    network = torchvision.models.get_model(name, **kwargs)
    if pretrained:
        load_torchvision_weights(network, name)
    return network


def _with_file(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else reason(error)


def _plain(network: nn.Module, name: str) -> nn.Module:
    """Return one's own network without wrappers that compute nothing themselves.

    Raises:
        RequestError: It is compiled, exported or scripted: other tensors cannot be put into it.
    """
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in network.modules())
    if scripted or _is_exported(network):
        whole = "" if isinstance(network, torch.jit.ScriptModule) else "network with a "
        kind = f"{whole}TorchScript module" if scripted else "module of torch.export"
        raise RequestError(
            f"{name} gives a {kind}, in which no weights can be exchanged and which cannot be "
            "trained; give its file itself to `rlskit.convert`, or the network's Python code"
        )
    return _unwrapped(network)


def _is_exported(network: nn.Module) -> bool:
    try:
        network.eval()
    except NotImplementedError:  # what torch.export puts in the place of eval and train
        return True
    return False


def _unwrapped(network: nn.Module) -> nn.Module:
    """Take off what only says where or how a network runs; inside, code may name such a wrapper."""
    while isinstance(network, _PARALLEL) or hasattr(network, _COMPILED):
        inner = "module" if isinstance(network, _PARALLEL) else _COMPILED
        network = cast(nn.Module, getattr(network, inner))
    for module in network.modules():
        for name, child in module._modules.items():
            module._modules[name] = getattr(child, _COMPILED, child)
        for name, value in vars(module).items():
            vars(module)[name] = uncompiled(value)
    return network


def _materialise(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Let lazy layers find their shapes, in a pass of two black images."""
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), own.heard():
            network.eval()
            network(torch.zeros(2, *image_shape, device=device))
    except Exception as error:  # whatever a forward pass raises on images of the wrong size
        raise unusable(network, image_shape, error) from error
