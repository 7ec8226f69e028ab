"""Images and labels in memory, as tensors, arrays or lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlskit.data.arrays import ArrayImages, check_light
from rlskit.data.dataset import Data
from rlskit.errors import RequestError, reason
from rlskit.pixels import check_images

MEMORY = "memory"
"""The name of data that no `--data` names."""


def from_memory(images: Any, labels: Any, classes: int, split: str = "test") -> Data:
    """Return images and labels as data; what was given is read and never written to.

    Args:
        images: `[n, C, H, W]`, uint8 or float in [0, 1].
        labels: One whole number in 0 .. classes - 1 per image, `[n]`.
        classes: Number of classes.
        split: What they stand for, `train` or `test`.

    Raises:
        RequestError: They are something else.
    """
    pixels = memory_images(images)
    names = tuple(map(str, range(classes)))
    whole = memory_labels(labels, len(pixels))
    return Data(MEMORY, split, names, whole, ArrayImages(MEMORY, pixels))


def memory_images(images: Any) -> Tensor:
    """Return images as uint8 or float32 `[n, C, H, W]` in [0, 1], on the CPU.

    Raises:
        RequestError: They are something else.
    """
    given = _tensor(images, "images")
    if given.ndim != 4 or given.dtype != torch.uint8:
        given = given.float() if given.is_floating_point() else given
        check_images(given)
    check_light(given, "images in memory")
    return given


def memory_labels(labels: Any, images: int) -> Tensor:
    """Return the labels of that many images as long `[n]`, on the CPU.

    Raises:
        RequestError: They are something else.
    """
    given = _tensor(labels, "labels")
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.shape != (images,) or not whole:
        raise RequestError(
            f"{images} images need as many labels, each the number of a class, not "
            f"{given.dtype} {list(given.shape)}"
        )
    return given.to(torch.int64)


def _tensor(values: Any, what: str) -> Tensor:
    """Return values as a tensor on the CPU that shares their memory where that is possible.

    Raises:
        RequestError: They are no array of numbers.
    """
    try:
        found = torch.as_tensor(values).detach().cpu()
        return found.clone() if found.is_inference() else found  # made under inference_mode
    except (RuntimeError, TypeError, ValueError) as error:
        raise RequestError(
            f"the {what} in memory are a {type(values).__name__}, no tensor ({reason(error)})"
        ) from error
