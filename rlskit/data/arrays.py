"""Images in memory: one tensor of them, and what an array must be to become one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlskit.data.fit import check_channels, fit
from rlskit.errors import RequestError
from rlskit.pixels import range_advice

if TYPE_CHECKING:
    import hashlib

    from torch import Tensor

_AT_ONCE = 1024  # images that are copied or looked at, where one copy of all would be a second

_DARK = 16
"""Where no pixel is above this of 255, it is of another scale: scikit-learn's digits are 0..16."""

_SOME = 10
"""So few images may be dark by themselves."""

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in one tensor.

    Attributes:
        name: Whose images they are, for messages.
        pixels: `[N, C, H, W]`, uint8, or float32 in [0, 1], of any memory layout.
        target: `(C, H, W)` that the images are brought to; None for their own.
    """

    name: str
    pixels: Tensor
    target: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Channels of every image that `read` returns."""
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image that `read` returns."""
        channels, height, width = self.target or self.pixels.shape[1:]
        return channels, height, width

    def read(self, indices: Tensor) -> Tensor:
        """Return those images, float32 `[b, C, H, W]` in [0, 1]."""
        images = self.pixels[indices].contiguous()
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return fit(images, self.shape)

    def subset(self, indices: Tensor) -> ArrayImages:
        """Return those images alone, in that order."""
        return dataclasses.replace(self, pixels=self.pixels[indices])

    def fitted(self, shape: tuple[int, int, int]) -> ArrayImages:
        """Return the images brought to `shape`.

        Raises:
            RequestError: Colour would have to be dropped.
        """
        check_channels(self.name, self.pixels.shape[1], shape[0])
        return dataclasses.replace(self, target=shape)

    def sizes(self) -> Counter[tuple[int, int]]:
        """Return how many images are stored with each height and width."""
        _, _, height, width = self.pixels.shape
        return Counter({(height, width): len(self)})

    def unreadable(self) -> dict[int, str]:
        """Return nothing: what is in memory has been read."""
        return {}

    def feed(self, digest: hashlib._Hash) -> None:
        """Add the type, the shape and the bytes of the stored pixels to `digest`."""
        digest.update(f"{self.pixels.dtype} {tuple(self.pixels.shape)}".encode())
        for some in torch.split(self.pixels, _AT_ONCE):
            digest.update(some.contiguous().view(-1).numpy().data)


def check_split(name: str, split: str) -> None:
    """Require one of the two splits that every data set but a folder has.

    Raises:
        RequestError: It is another; `name` says whose.
    """
    if split not in SPLITS:
        raise RequestError(f"`split` {split!r} is unknown; {name} has {' and '.join(SPLITS)}")


def as_pixels(images: Any, what: str) -> Tensor:
    """Return an array of images as uint8 or float32 `[N, C, H, W]`.

    Args:
        images: `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`, uint8 or float in [0, 1].
        what: Names the array in messages.

    Raises:
        RequestError: Another shape or type, an ambiguous one, NaN, infinite or out of [0, 1].
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise RequestError(f"{what} is {array.dtype}; it must be uint8, or float in [0, 1]")
    if _channels_last(array.shape, what):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim == 3:
        array = array[:, None]
    if array.dtype != np.uint8:
        _check_unit_range(array, what)
        array = array.astype(np.float32, copy=False)
    pixels = _as_tensor(array)
    check_light(pixels, what)
    return pixels


def check_light(pixels: Tensor, what: str) -> None:
    """Require a scale of 0 to 255, or of 0 to 1, that is used: else images are read as black ones.

    Args:
        pixels: `[N, C, H, W]`, uint8 or float32 in [0, 1].
        what: Names them in messages.

    Raises:
        RequestError: All pixels of many images are next to black.
    """
    full = 255 if pixels.dtype == torch.uint8 else 1
    dark = _DARK / 255 * full
    if len(pixels) <= _SOME or any((some > dark).any() for some in torch.split(pixels, _AT_ONCE)):
        return
    if high := float(pixels.max()) / full:
        raise RequestError(
            f"{what} would be read as nearly black images: no pixel is above {high:.1%} of white; "
            "if that is not so, divide them by the largest value that a pixel of its kind can "
            "have, and give them as float32"
        )


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return an array as a tensor, uncopied where torch can: it knows no step backwards."""
    return torch.from_numpy(array if min(array.strides) >= 0 else array.copy())


def _channels_last(shape: tuple[int, ...], what: str) -> bool:
    """Say whether the 1 or 3 channels are the last of four axes and not the second, or left out."""
    first, last = ((shape[axis] in (1, 3)) if len(shape) == 4 else False for axis in (1, 3))
    if (first == last and len(shape) != 3) or 0 in shape[1:]:
        fault = "leaves open which axis holds the channels" if first else "is none of them"
        raise RequestError(
            f"{what} must be [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 or 3 channels, and "
            f"its shape {list(shape)} {fault}"
        )
    return last


def _check_unit_range(array: np.ndarray[Any, Any], what: str) -> None:
    some = range(0, len(array), _AT_ONCE)
    if not all(np.isfinite(array[i : i + _AT_ONCE]).all() for i in some):
        raise RequestError(f"{what} holds NaN or infinite pixels")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if low < 0 or high > 1:
        raise RequestError(
            f"{what} must lie in [0, 1], but spans [{low:.8g}, {high:.8g}]; "
            f"{range_advice(low, high)}"
        )
