"""Architectures: everything that decides which network is built, and nothing of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rlskit.errors import RequestError
from rlskit.models import own
from rlskit.models.hub_folder import PREFIX
from rlskit.models.listing import LIBRARIES, lists, unknown_model
from rlskit.models.programs import is_program

SOURCES = (*LIBRARIES, "own")

MEMORY = "memory"
"""The source of a module in memory (`models/memory.py`), which nothing can build again."""

# The only arguments that a factory is ever given, and how a value from a checkpoint is read.
_KWARGS: dict[str, Callable[[Any], Any]] = {
    "num_classes": int,
    "in_chans": int,
    "image_size": int,
    "img_size": lambda size: (int(size[0]), int(size[1])),
    "input_size": lambda size: (int(size[0]), int(size[1])),
    "init_weights": bool,
    "transform_input": bool,
}


@dataclass(frozen=True)
class Architecture:
    """How to build one network, again and again.

    Attributes:
        source: One of `SOURCES`, or `MEMORY`.
        name: The library's name of the model; for one's own code `FILE.py:factory` or
            `package.module:factory`.
        kwargs: Keyword arguments of the library's factory.
        in_chans: Channels that the first convolution is changed to, or None.
        small_images: Whether the stem and head are changed for images of 28 to 64 pixels.
        digest: For one's own code, the sha256 of its source file; of a module in memory, of what
            its tensors do not show.
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

    @property
    def is_program(self) -> bool:
        """Whether it is a file of one's own that holds code and weights together."""
        return self.source == "own" and is_program(self.name)

    @property
    def is_hub_folder(self) -> bool:
        """Whether it is a folder of transformers, `hf:NAME`."""
        return self.source == "own" and self.name.startswith(PREFIX)

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
            given = cls(**fields)
            name = str(given.name)
            if given.source == MEMORY:
                raise RequestError(f"it is of {unsaveable(name)}")
            if given.source not in SOURCES:
                raise ValueError(f"no source is called {given.source!r}")
            if given.source != "own" and not lists(given.source, name):
                raise ValueError(f"{given.source} has no model {name!r}")
            return replace(
                given,
                name=name,
                kwargs={key: _KWARGS[key](value) for key, value in given.kwargs.items()},
                in_chans=None if given.in_chans is None else int(given.in_chans),
                small_images=bool(given.small_images),
                digest=str(given.digest),
            )
        except RequestError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RequestError(
                f"the checkpoint's architecture is unreadable ({error!r})"
            ) from error


def names_code(spec: str) -> bool:
    """Whether `resolve` would run someone's own: `FILE.py:factory`, `module:factory`, a program."""
    if is_program(spec):
        return True
    prefix, _, name = spec.partition(":")
    return bool(name) and prefix not in LIBRARIES and not spec.startswith(PREFIX)


def unsaveable(name: str) -> str:
    """Say what to do about a module in memory that is to be kept in a file."""
    return (
        f"a module in memory ({name}), which no file can build again; write a factory that returns "
        "it, and use `rlskit.convert('FILE.py:factory', weights='WEIGHTS')`"
    )


def resolve(spec: str) -> Architecture:
    """Find the architecture that `spec` names: timm before torchvision, or one's own factory.

    Args:
        spec: `resnet50`, `timm:resnet50`, `torchvision:resnet50`, `FILE.py:factory`,
            `package.module:factory`, a program's file (`FILE.pt2`, TorchScript), or a folder of
            transformers (`hf:PATH`).

    Raises:
        RequestError: There is none; the message names the nearest.
    """
    prefix, _, name = spec.partition(":")
    if prefix in LIBRARIES:
        if not lists(prefix, name):
            raise unknown_model(name, prefix)
        return Architecture(prefix, name)
    if names_code(spec) or spec.startswith(PREFIX):
        shown, digest = own.introduce(spec)
        return Architecture("own", shown, digest=digest)
    if spec.endswith(".py"):
        raise RequestError(f"{spec} needs the name of its factory: {spec}:FACTORY")
    if spec.lower().endswith(".onnx"):
        raise RequestError(
            f"{spec}: ONNX holds no network of torch's; give the network's Python code as "
            "FILE.py:factory, or what torch.export.save writes of it"
        )
    for library in LIBRARIES:
        if lists(library, spec):
            return Architecture(library, spec)
    raise unknown_model(spec)
