"""Saved adversarial images: float32, so that saving does not undo the attack.

A safetensors file with `images` [n, C, H, W] in [0, 1], `labels` [n] and `indices` [n] into the
data set, and one JSON string that says which model and data they belong to, by sha256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlskit.data import Data
from rlskit.data.arrays import ArrayImages
from rlskit.errors import RequestError
from rlskit.files import parse_json, replacing
from rlskit.models.banks import Card
from rlskit.pixels import check_images

FORMAT = "rlskit.adversarial/1"


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
    tensors = {
        "images": images.float().contiguous(),
        "labels": labels.contiguous(),
        "indices": indices.contiguous(),
    }
    with replacing(path, force=True) as temporary:
        save_file(tensors, temporary, {"rlskit": json.dumps({"format": FORMAT, **about})})


def read_adversarial(path: str | Path, card: Card) -> SavedAdversarial:
    """Read what `write_adversarial` wrote.

    Args:
        path: The file.
        card: Of the model that is to be evaluated.

    Raises:
        RequestError: The file is missing, damaged, holds something else, or images of another shape
            or of other classes than the model takes.
    """
    path = Path(path)
    about, tensors = _read(path)
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
    given, taken = (facts["classes"], *images.shape[1:]), (card.classes, *card.pixels.shape)
    if given != taken:
        raise RequestError(
            f"{path} holds images of {given[0]} classes and shape {list(given[1:])}, but the model "
            f"takes {taken[0]} and {list(taken[1:])}"
        )
    names = tuple(map(str, range(card.classes)))
    source = ArrayImages(str(path), images)
    data = Data(facts["data"]["name"], facts["data"]["split"], names, labels, source)
    return SavedAdversarial(data, facts)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's metadata and tensors, neither of them checked."""
    if not path.is_file():
        raise RequestError(f"there is no file {path}; `rlskit attack --save-adversarial` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {}).get("rlskit", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"{path} is not a readable safetensors file ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RequestError(f"{path} holds no adversarial images of rlskit's")
    return about, tensors


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
