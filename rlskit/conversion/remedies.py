"""Which options would make a weight file fit: tried, not guessed, on networks without memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlskit.conversion.fitting import StateDict, Wanted, fits
from rlskit.errors import RequestError
from rlskit.models.architecture import Architecture
from rlskit.models.building import build_on_meta, configure
from rlskit.models.listing import LIBRARIES, lists

_SIZES = (28, 32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512)
_MOST_CHANGES, _MOST_CHANNELS = 2, 16


@dataclass(frozen=True)
class Asked:
    """What `convert` was asked to build.

    Attributes:
        architecture: As `resolve` gave it.
        classes: Number of classes, or None for the library's.
        channels: Channels of an image.
        size: Height and width.
        small_images: Whether stem and head are changed for small images.
    """

    architecture: Architecture
    classes: int | None
    channels: int
    size: tuple[int, int]
    small_images: bool = False

    def built(self) -> Wanted:
        """Return what the network would want of a file."""
        architecture = configure(
            self.architecture,
            classes=self.classes,
            channels=self.channels,
            image_size=self.size,
            small_images=self.small_images,
        )
        return Wanted.of(build_on_meta(architecture))


def remedy(asked: Asked, states: list[StateDict]) -> str:
    """Return the options with which one of the state dicts would fit, as a clause; "" if none do.

    Args:
        asked: What was built, and does not fit.
        states: What a weight file holds.
    """
    state = max(states, key=lambda one: len(one.tensors))
    nearest = fits(state, asked.built())[0]
    named = not (nearest.missing or nearest.unexpected)
    for other in itertools.chain(_others(asked, state), _sizes(asked, state) if named else ()):
        with contextlib.suppress(RequestError):
            if any(fit.whole and not fit.outside for fit in fits(state, other.built())):
                return f"it would fit with {_difference(asked, other)}"
    return ""


def _others(asked: Asked, state: StateDict) -> Iterator[Asked]:
    """Yield requests that differ in one or two options."""
    fields: dict[str, list[Any]] = {
        "architecture": [asked.architecture, *_namesakes(asked.architecture)],
        "classes": _classes(asked, state),
        "channels": list(dict.fromkeys([asked.channels, *_channels(state)])),
        "small_images": [asked.small_images, not asked.small_images],
    }
    places = itertools.product(*(range(len(values)) for values in fields.values()))
    for where in sorted(places, key=lambda place: sum(map(bool, place))):
        if 0 < sum(map(bool, where)) <= _MOST_CHANGES:
            pairs = zip(fields.items(), where, strict=True)
            yield replace(asked, **{name: values[i] for (name, values), i in pairs})


def _sizes(asked: Asked, state: StateDict) -> Iterator[Asked]:
    for classes, side in itertools.product(_classes(asked, state), _SIZES):
        yield replace(asked, classes=classes, size=(side, side))


def _namesakes(architecture: Architecture) -> list[Architecture]:
    """Return the other libraries' networks of the same name."""
    if architecture.source not in LIBRARIES:
        return []
    name = architecture.name.partition(".")[0]
    others = [library for library in LIBRARIES if library != architecture.source]
    return [Architecture(library, name) for library in others if lists(library, name)]


def _classes(asked: Asked, state: StateDict) -> list[int | None]:
    """Return the number of classes asked for, and that of the file's last matrix."""
    heads = [t.shape[0] for t in state.tensors.values() if t.ndim == 2]
    return list(dict.fromkeys([asked.classes, *heads[-1:]]))


def _channels(state: StateDict) -> list[int]:
    stems = [t.shape[1] for t in state.tensors.values() if t.ndim == 4]
    return stems[:1] if stems and stems[0] <= _MOST_CHANNELS else []


def _difference(asked: Asked, other: Asked) -> str:
    """Return the options that lead from one request to the other."""
    changed = {
        "num_classes": (asked.classes, other.classes),
        "in_chans": (asked.channels, other.channels),
        "image_size": (asked.size[0], other.size[0]),
        "small_images": (asked.small_images, other.small_images or None),
    }
    given = [f"{n}={new}" for n, (old, new) in changed.items() if new not in (old, None)]
    found = [f"`{', '.join(given)}`"] if given else []
    if other.architecture != asked.architecture:
        found.insert(0, other.architecture.label)
    if asked.small_images and not other.small_images:
        found.append("`small_images` left out")
    return " ".join(found)
