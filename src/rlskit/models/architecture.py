"""Architectures: how to build a network of timm, torchvision or one's own code, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from rlskit.errors import RequestError, RunError
from rlskit.models import own
from rlskit.models.small_images import adapt_to_small_images
from rlskit.models.stem import set_input_channels
from rlskit.torchvision_ops import declare_missing_operators

SOURCES = ("timm", "torchvision", "own")

# The only arguments that a factory is ever given, and how a value from a checkpoint is read.
_KWARGS: dict[str, Callable[[Any], Any]] = {
    "num_classes": int,
    "in_chans": int,
    "image_size": int,
    "img_size": lambda size: (int(size[0]), int(size[1])),
    "init_weights": bool,
}


@dataclass(frozen=True)
class Architecture:
    """Everything that decides which network is built, and nothing of its weights.

    Attributes:
        source: One of `SOURCES`.
        name: The library's name of the model; for one's own code `FILE.py:factory` or
            `package.module:factory`.
        kwargs: Keyword arguments of the library's factory.
        in_chans: Channels that the first convolution is changed to, or None.
        small_images: Whether the stem and head are changed for images of 28 to 64 pixels.
        digest: For one's own code, the sha256 of its source file.
    """

    source: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    in_chans: int | None = None
    small_images: bool = False
    digest: str = ""

    @property
    def label(self) -> str:
        """The name to print, with its source."""
        return self.name if self.source == "own" else f"{self.source}:{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Architecture:
        """Rebuild from `to_json`'s fields, which may come from anyone.

        Only a name that the library lists and arguments that are plain numbers reach its factory:
        timm's would also take a path or an address.

        Raises:
            RequestError: A field is missing, unknown, or of another type.
        """
        try:
            architecture = cls(**fields)
            kwargs = {name: _KWARGS[name](value) for name, value in architecture.kwargs.items()}
            channels = architecture.in_chans
            return replace(
                architecture,
                name=_registered(architecture.source, str(architecture.name)),
                kwargs=kwargs,
                in_chans=None if channels is None else int(channels),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"the checkpoint's architecture is unreadable ({error!r})"
            ) from error


def resolve(spec: str) -> Architecture:
    """Find the architecture that `spec` names: timm before torchvision, or one's own factory.

    Args:
        spec: `resnet50`, `timm:resnet50`, `torchvision:resnet50`, `FILE.py:factory` or
            `package.module:factory`.

    Raises:
        RequestError: There is none; the message names the nearest.
    """
    prefix, _, name = spec.partition(":")
    if prefix in ("timm", "torchvision"):
        if name in _known(prefix, name):
            return Architecture(prefix, name)
        raise _unknown(name, [f"{prefix}:{known}" for known in _catalogue(prefix)], f"{prefix}:")
    if name:
        shown, digest = own.introduce(spec)
        return Architecture("own", shown, digest=digest)
    for source in ("timm", "torchvision"):
        if spec in _known(source, spec):
            return Architecture(source, spec)
    raise _unknown(spec, [*_catalogue("timm"), *_catalogue("torchvision")])


def list_models(pattern: str = "*") -> list[str]:
    """Return all names that `resolve` knows and that match the glob, timm's first.

    A torchvision name that timm has too is listed with its prefix.
    """
    timm_names = _catalogue("timm")
    taken = set(timm_names)
    names = timm_names + [
        f"torchvision:{name}" if name in taken else name for name in _catalogue("torchvision")
    ]
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, wanted)]


def configure(
    architecture: Architecture,
    *,
    classes: int | None,
    channels: int | None,
    image_size: tuple[int, int] | None,
    small_images: bool = False,
) -> Architecture:
    """Complete an architecture for a task; what the library has an argument for goes there.

    Args:
        architecture: As `resolve` gave it.
        classes: Number of classes, or None for the library's own.
        channels: Number of image channels, or None for the library's own.
        image_size: Height and width, or None for the library's own.
        small_images: Change stem and head for small images.

    Raises:
        RequestError: The network cannot be built so.
    """
    accepted: dict[str, Any] = {}
    wanted: dict[str, Any] = {"num_classes": classes}
    if architecture.source == "torchvision":
        wanted["image_size"] = image_size[0] if image_size else None
    else:
        wanted |= {"in_chans": channels, "img_size": image_size}
    for name, value in wanted.items():
        if value is not None and _takes(replace(architecture, kwargs=accepted), name, value):
            accepted[name] = value
    if architecture.source == "torchvision" and architecture.name in ("googlenet", "inception_v3"):
        accepted["init_weights"] = True
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
    """Build one network without memory or arithmetic; own code needing real tensors has them."""
    try:
        with torch.device("meta"):
            return build(architecture)
    except (NotImplementedError, RuntimeError):
        with torch.random.fork_rng(devices=[]):
            return build(architecture)


def library_pixels(architecture: Architecture) -> dict[str, Any]:
    """Return what the library says of its images: channels, height, width, mean, std, classes."""
    declare_missing_operators()
    if architecture.source == "timm":
        import timm

        config = timm.get_pretrained_cfg(architecture.name, allow_unregistered=False)
        if config is None:
            return dict(_IMAGENET)
        channels, height, width = config.input_size
        return {
            "channels": channels, "height": height, "width": width,
            "mean": tuple(config.mean), "std": tuple(config.std), "classes": config.num_classes,
        }  # fmt: skip
    side = 299 if architecture.name == "inception_v3" else 224
    return {**_IMAGENET, "height": side, "width": side}


_IMAGENET: dict[str, Any] = {
    "channels": 3, "height": 224, "width": 224, "classes": 1000,
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip


def _factory(architecture: Architecture, pretrained: bool) -> nn.Module:
    declare_missing_operators()
    name, kwargs = architecture.name, dict(architecture.kwargs)
    try:
        if architecture.source == "own":
            return own.factory(name, architecture.digest)(**kwargs)
        if architecture.source == "timm":
            import timm

            network: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
            return network
        return _torchvision_model(name, kwargs, pretrained)
    except OSError as error:
        raise RunError(
            f"the weights of {name} could not be downloaded ({_first_line(error)})"
        ) from error
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RequestError) or (not architecture.kwargs and not pretrained):
            raise
        raise RequestError(
            f"{name} cannot be built with {kwargs} ({_first_line(error)})"
        ) from error


def _torchvision_model(name: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    import torchvision

    if not pretrained:
        network: nn.Module = torchvision.models.get_model(name, **kwargs)
        return network
    # torchvision refuses another head together with weights: load first, then replace the head.
    classes = kwargs.pop("num_classes", None)
    network = torchvision.models.get_model(name, weights="DEFAULT", **kwargs)
    if classes is not None:
        _replace_head(network, classes)
    return network


def _replace_head(network: nn.Module, classes: int) -> None:
    path, head = [
        (p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ][-1]
    parent = network.get_submodule(path.rpartition(".")[0])
    new: nn.Module
    if isinstance(head, nn.Linear):
        if head.out_features == classes:
            return
        new = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    else:
        if head.out_channels == classes:
            return
        new = nn.Conv2d(head.in_channels, classes, 1, bias=head.bias is not None)
    setattr(parent, path.rpartition(".")[2], new)


def _takes(architecture: Architecture, argument: str, value: object) -> bool:
    """Whether the library's factory accepts one more argument."""
    if architecture.source == "own":
        return own.takes(architecture.name, architecture.digest, argument)
    if argument in ("num_classes", "in_chans"):
        return architecture.source == "timm" or argument == "num_classes"
    kwargs = {**architecture.kwargs, argument: value}
    try:
        with torch.device("meta"):
            _factory(replace(architecture, kwargs=kwargs), pretrained=False)
    except RequestError as error:
        if isinstance(error.__cause__, TypeError):
            return False
        raise
    return True


def _known(source: str, name: str) -> list[str]:
    # timm's names may carry the tag of a set of weights: resnet50.a1_in1k.
    catalogue = _catalogue(source)
    if source == "timm" and "." in name and name.partition(".")[0] in catalogue:
        declare_missing_operators()
        import timm

        return timm.list_pretrained(name)  # type: ignore[no-any-return]
    return catalogue


def _registered(source: str, name: str) -> str:
    if source not in SOURCES or (source != "own" and name not in _known(source, name)):
        raise ValueError(f"{source} has no model {name!r}")
    return name


def _catalogue(source: str) -> list[str]:
    declare_missing_operators()
    if source == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(torchvision.models))


def _unknown(name: str, known: list[str], prefix: str = "") -> RequestError:
    near = get_close_matches(prefix + name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`rlskit models` lists them"
    return RequestError(f"no model is called {name!r}; {hint}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
