"""Saved adversarial images: float32, so that saving does not undo the attack.

A safetensors file with `images` [n, C, H, W] in [0, 1], `labels` [n] and `indices` [n] into the
data set, and one JSON string that says which model and data they belong to, by sha256. A checksum
covers all of it, so that images are never scored as an attack's that are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlskit.data import Data
from rlskit.data.arrays import ArrayImages
from rlskit.errors import RequestError
from rlskit.pixels import check_images
from rlskit.storage.sealed import read_sealed, write_sealed

FORMAT = "rlskit.adversarial/2"


@dataclass(frozen=True)
class SavedAdversarial:
    """Adversarial images from a file.

    Attributes:
        data: The images with their labels, as data to evaluate on.
        about: `checkpoint_sha256`, `classes`, `data` (name, split, n, sha256), `attack`,
            `protocol`, `n_attacked` and `seed`, as the attack noted them.
    """

    data: Data
    about: dict[str, Any]


def write_adversarial(
    path: Path, images: Tensor, labels: Tensor, indices: Tensor, about: dict[str, Any]
) -> None:
    """Write adversarial images, replacing the file if it is there."""
    tensors = {"images": images.float(), "labels": labels, "indices": indices}
    write_sealed(path, tensors, {"format": FORMAT, **about})


def read_adversarial(
    path: str | Path, shape: tuple[int, int, int], classes: int
) -> SavedAdversarial:
    """Read what `write_adversarial` wrote.

    Args:
        path: The file.
        shape: (C, H, W), what the model that is to be evaluated takes.
        classes: How many it tells apart.

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
        images, labels = tensors["images"], tensors["labels"].to(torch.int64)
        facts = _facts(about)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: its metadata is unreadable ({error!r})") from error
    check_images(images, f"{path}: images")
    if images.dtype != torch.float32:
        raise RequestError(f"{path} holds images of {images.dtype}, not float32")
    if labels.shape != images.shape[:1]:
        raise RequestError(f"{path} has {len(images)} images but {labels.numel()} labels")
    given, taken = (facts["classes"], *images.shape[1:]), (classes, *shape)
    if given != taken:
        raise RequestError(
            f"{path} holds images of {given[0]} classes and shape {list(given[1:])}, but the model "
            f"takes {taken[0]} and {list(taken[1:])}"
        )
    names = tuple(map(str, range(classes)))
    source = ArrayImages(str(path), images)
    data = Data(facts["data"]["name"], facts["data"]["split"], names, labels, source)
    return SavedAdversarial(data, facts)


def _facts(about: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the images, each field read as what it must be."""
    data, attack = about["data"], about["attack"]
    stated = {str(k): v for k, v in attack["stated"].items()}
    for name in ("eps", "c"):  # which tables show
        if stated.get(name) is not None:
            stated[name] = float(stated[name])
    return {
        "checkpoint_sha256": str(about["checkpoint_sha256"]),
        "classes": int(about["classes"]),
        "data": {
            "name": str(data["name"]),
            "split": str(data["split"]),
            "n": int(data["n"]),
            "sha256": str(data["sha256"]),
        },
        "attack": {
            **attack,
            "method": str(attack["method"]),
            "stated": stated,
            "pixel_range": str(attack["pixel_range"]),
        },
        "protocol": str(about["protocol"]),
        "n_attacked": int(about["n_attacked"]),
        "seed": int(about["seed"]),
    }
