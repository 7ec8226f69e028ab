"""What an audit is made on: images, labels, and what its result says of model and data."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.audit.defended import SHOWN, at_the_boundary, attacked
from rlskit.data import MEMORY, Data, load, memory_images, memory_labels, spread
from rlskit.data.arrays import ArrayImages
from rlskit.errors import RequestError
from rlskit.evaluation import subject_of
from rlskit.evaluation.subject import library_versions
from rlskit.inputs import pair_of, taken
from rlskit.models.banks import BankedModel
from rlskit.results.result import CheckpointFacts, ImageFacts, ModelFacts

FACTS = ("checkpoint", "model", "defense", "data", "device", "versions", "warnings")
"""The fields of a result that do not depend on what is measured."""


@dataclass(frozen=True)
class Material:
    """What an audit is made on.

    Attributes:
        images: `[n, C, H, W]` in [0, 1], on the model's device.
        labels: Long `[n]`.
        classes: Number of classes.
        facts: `FACTS` of the result.
        model: The model, a module of one's own behind its boundary.
    """

    images: Tensor
    labels: Tensor
    classes: int
    facts: dict[str, Any]
    model: BankedModel | nn.Module


def material(
    model: BankedModel | nn.Module,
    data: str | Data | tuple[Tensor, Tensor] | None,
    limit: int | None,
) -> Material:
    """Return the first of what is asked for, spread evenly.

    Args:
        model: The model under audit.
        data: A data set's name, data, or images and labels.
        limit: Most images; None for all.

    Raises:
        RequestError: Data are missing, or do not fit the model.
        UntrustedError: The weights are not finite.
    """
    if not isinstance(model, BankedModel):
        return _of_module(model, data, limit)
    model, data = taken(model, data)
    if not isinstance(data, Data):
        data = load(data or model.card.default_data(), "test")
    subject = subject_of(model, data.limited(limit))
    facts = subject.facts()
    images = subject.data.images(range(len(subject.data))).to(model.device)
    return Material(
        images, subject.data.labels.to(model.device), model.card.classes,
        {name: facts[name] for name in FACTS}, model,
    )  # fmt: skip


def _of_module(
    module: nn.Module, data: str | Data | tuple[Tensor, Tensor] | None, limit: int | None
) -> Material:
    """Return the same for a module that rlskit did not build."""
    if not isinstance(module, nn.Module):
        raise RequestError(f"what is audited is a torch.nn.Module, not a {type(module).__name__}")
    if data is None:
        raise RequestError("a module of one's own does not say what data it takes; give data")
    images, labels, (name, split, sha256) = _given(data, limit)
    tensors = itertools.chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    images, labels = images.to(device), labels.to(device)
    boundary = at_the_boundary(module, images[:SHOWN])
    facts = {
        "checkpoint": CheckpointFacts(path=None, sha256=None),
        "model": ModelFacts(architecture=type(module).__name__),
        "defense": "own",
        "data": ImageFacts(name=name, split=split, n=len(labels), sha256=sha256),
        "device": device.type,
        "versions": library_versions(),
        "warnings": (),
    }
    return Material(images, labels, _classes(boundary, images, labels), facts, boundary)


def _given(
    data: str | Data | tuple[Tensor, Tensor], limit: int | None
) -> tuple[Tensor, Tensor, tuple[str, str, str]]:
    """Return images, labels and what names them: name, split and digest."""
    pair = pair_of(data)
    if pair is None:
        found = (data if isinstance(data, Data) else load(data, "test")).limited(limit)  # type: ignore[arg-type]
        about = found.name, found.split, found.sha256
        return found.images(range(len(found))), found.labels, about
    pixels = memory_images(pair[0])
    labels = memory_labels(pair[1], len(pixels))
    if not len(labels):
        raise RequestError("there is no image to audit on")
    chosen = spread(len(labels), len(labels) if limit is None else min(limit, len(labels)))
    images = ArrayImages(MEMORY, pixels).read(chosen)
    digest = hashlib.sha256(images.contiguous().numpy().tobytes())
    return images, labels[chosen], ("tensors", "–", digest.hexdigest())


@torch.no_grad()
def _classes(module: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the number of classes that a module answers with, which the labels must fit."""
    shape = attacked(module)(images[:1]).shape
    if len(shape) != 2 or shape[0] != 1:
        raise RequestError(f"the module answers an image with {list(shape)}, not [1, classes]")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise RequestError(
            f"the labels span {int(labels.min())} to {int(labels.max())}, but the module has "
            f"{shape[1]} classes"
        )
    return int(shape[1])
