"""Build the network that an architecture describes, after fitting the architecture to a task."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rlskit.errors import RequestError, RlskitError, RunError, reason
from rlskit.models import own
from rlskit.models.architecture import Architecture
from rlskit.models.published import WITH_AUXILIARY_HEADS, load_torchvision_weights
from rlskit.models.small_images import adapt_to_small_images
from rlskit.models.stem import set_input_channels
from rlskit.torchvision_ops import declare_missing_operators


def configure(
    architecture: Architecture,
    *,
    classes: int | None,
    channels: int | None,
    image_size: tuple[int, int] | None,
    small_images: bool = False,
    pretrained: bool = False,
) -> Architecture:
    """Complete an architecture for a task; what the library has an argument for goes there.

    Args:
        architecture: As `resolve` gave it.
        classes: Number of classes, or None for the library's own.
        channels: Number of image channels, or None for the library's own.
        image_size: Height and width, or None for the library's own.
        small_images: Change stem and head for small images.
        pretrained: The network will get the library's weights.

    Raises:
        RequestError: The network cannot be built so.
    """
    accepted: dict[str, Any] = {}
    for name, value in _wanted(architecture.source, classes, channels, image_size).items():
        if value is not None and _takes(replace(architecture, kwargs=accepted), name, value):
            accepted[name] = value
    if architecture.source == "torchvision" and architecture.name in WITH_AUXILIARY_HEADS:
        accepted["init_weights"] = True  # torchvision warns unless it is told
        if pretrained and channels in (None, 3):
            accepted["transform_input"] = True
    in_chans = channels if channels and "in_chans" not in accepted else None
    return replace(architecture, kwargs=accepted, in_chans=in_chans, small_images=small_images)


def build(architecture: Architecture, *, pretrained: bool = False) -> nn.Module:
    """Build one network; its random initialisation uses the global generator.

    Args:
        architecture: As `configure` completed it.
        pretrained: Load the library's weights (timm, torchvision).

    Raises:
        RequestError: The library refuses, or has no such weights.
        RunError: The weights cannot be downloaded.
    """
    network = _factory(architecture, pretrained)
    if architecture.in_chans is not None:
        set_input_channels(network, architecture.in_chans)
    if architecture.small_images:
        adapt_to_small_images(network)
    return network


def build_on_meta(architecture: Architecture) -> nn.Module:
    """Build one network without memory or arithmetic for its weights.

    Some factories read values off small tensors that they make (torchvision's RegNets), which only
    parameters on meta allow; one's own code may need real tensors altogether.

    Raises:
        RequestError: The network cannot be built so.
    """
    modes: list[contextlib.AbstractContextManager[object]]
    modes = [torch.device("meta"), _EmptyOnMeta()]
    if architecture.source == "own":
        modes.append(contextlib.nullcontext())
    with torch.random.fork_rng(devices=[]):
        for mode in modes[:-1]:
            with contextlib.suppress(RequestError), mode:
                return build(architecture)
        with modes[-1]:
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


def _factory(architecture: Architecture, pretrained: bool) -> nn.Module:
    declare_missing_operators()
    name, kwargs = architecture.name, architecture.kwargs
    try:
        network = _called(architecture, pretrained)
    except (RlskitError, MemoryError):
        raise
    except OSError as error:
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


def _called(architecture: Architecture, pretrained: bool) -> Any:
    name, kwargs = architecture.name, dict(architecture.kwargs)
    if architecture.source == "own":
        return own.factory(name, architecture.digest)(**kwargs)
    if architecture.source == "timm":
        import timm

        return timm.create_model(name, pretrained=pretrained, **kwargs)
    import torchvision

    network = torchvision.models.get_model(name, **kwargs)
    if pretrained:
        load_torchvision_weights(network, name)
    return network
