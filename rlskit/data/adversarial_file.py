"""Saved adversarial images: float32, so that saving does not undo the attack.

A safetensors file with `images` [n, C, H, W] in [0, 1], `labels` [n] and `indices` [n] into the
whole data set, and one JSON string that says which model and data they belong to, by sha256, and
the `paths` [n] of images from a folder. A checksum covers all of it, so that images are never
scored as an attack's that are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlskit.data import Data
from rlskit.data.arrays import ArrayImages
from rlskit.data.classes import MOST_CLASSES
from rlskit.documents import OPTIONAL, Count, from_json, to_json
from rlskit.errors import RequestError, reason
from rlskit.pixels import check_images
from rlskit.storage.files import Pieces
from rlskit.storage.sealed import read_sealed, write_sealed

FORMAT = "rlskit.adversarial/2"


@dataclass(frozen=True, kw_only=True)
class SavedData:
    """The data that adversarial images were made from; the attributes are those of `Data`."""

    name: str
    split: str
    n: Count
    sha256: str
    order: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class SavedFacts:
    """What a file says of its images.

    Attributes:
        checkpoint_sha256: Of the model that they were made against.
        classes: How many it tells apart.
        data: What they were made from.
        attack: What made them, as in a result.
        protocol: The attacker's view.
        n_attacked: Draws in it.
        seed: That all randomness derived from.
        paths: Of images from a folder, their paths in it.
    """

    checkpoint_sha256: str
    classes: Count
    data: SavedData
    attack: dict[str, Any]
    protocol: str
    n_attacked: Count
    seed: int
    paths: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class SavedAdversarial:
    """Adversarial images from a file.

    Attributes:
        data: The images with their labels, as data to evaluate on.
        about: What the attack noted of them.
    """

    data: Data
    about: SavedFacts


def write_adversarial(
    path: Path,
    images: Tensor | Pieces,
    labels: Tensor,
    indices: Tensor,
    about: Mapping[str, Any],
) -> None:
    """Write adversarial images, replacing the file if it is there.

    Args:
        path: The file.
        images: Float32 `[n, C, H, W]` in [0, 1].
        labels: Long `[n]`.
        indices: In the whole data set, long `[n]`.
        about: The fields of `SavedFacts`.
    """
    tensors = {"images": images, "labels": labels, "indices": indices}
    write_sealed(path, tensors, {"format": FORMAT, **to_json(about)})


def read_adversarial(
    path: str | Path, shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> SavedAdversarial:
    """Read what `write_adversarial` wrote.

    Args:
        path: The file.
        shape: (C, H, W), what the model that is to be evaluated takes; None to look at the images
            only.
        classes: How many it tells apart; None likewise.

    Raises:
        RequestError: The file is missing, damaged, was changed since, holds something else, or
            images of another shape or of other classes than the model takes.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(
            f"there is no file {path}; `rlskit.attack(save_adversarial=True)` makes one"
        )
    try:
        about, tensors = read_sealed(path, FORMAT)
    except RequestError as error:
        again = "make it again with `rlskit.attack(save_adversarial=True)`"
        raise RequestError(f"{error}; {again}") from error
    try:
        images, labels, indices = (tensors[name] for name in ("images", "labels", "indices"))
        facts = from_json(about, SavedFacts)
    except (KeyError, ValueError) as error:
        raise RequestError(f"{path}: its metadata is unreadable ({reason(error)})") from error
    check_images(images, f"{path}: images")
    if images.dtype != torch.float32:
        raise RequestError(f"{path} holds images of {images.dtype}, not float32")
    for name, found in (("labels", labels), ("indices", indices)):
        if found.shape != images.shape[:1] or found.dtype != torch.int64:
            raise RequestError(f"{path} has {len(images)} images but {found.numel()} {name}")
    if facts.paths is not None and len(facts.paths) != len(images):
        raise RequestError(f"{path} has {len(images)} images but {len(facts.paths)} paths")
    if facts.classes > MOST_CLASSES:
        raise RequestError(f"{path} claims {facts.classes:,} classes, which no model tells apart")
    given = (facts.classes, *images.shape[1:])
    taken = (classes or facts.classes, *(shape or images.shape[1:]))
    if given != taken:
        raise RequestError(
            f"{path} holds images of {given[0]} classes and shape {list(given[1:])}, but the model "
            f"takes {taken[0]} and {list(taken[1:])}"
        )
    names = tuple(map(str, range(facts.classes)))
    source = ArrayImages(str(path), images)
    data = Data(
        facts.data.name, facts.data.split, names, labels, source, indices=indices,
        paths=facts.paths, order=facts.data.order,
    )  # fmt: skip
    return SavedAdversarial(data, facts)
