"""One image file to one tensor, for every kind of image that has an unambiguous meaning.

| stored as | becomes |
| --- | --- |
| 1 bit, 8-bit gray | 1 channel, /1 or /255 |
| 16-bit gray | 1 channel, /65535 (Pillow's own conversion would clip at 255) |
| 8-bit colour, palette, CMYK, YCbCr | 3 channels, /255 |
| 16-bit colour | 3 channels, the upper 8 bits |
| any of them with alpha | the same; alpha is dropped, as torchvision and timm do |
| 32-bit whole numbers, floats, Lab | refused: their range is not known |

The orientation in EXIF is not applied, as in torchvision and timm; of several frames or pages the
first is read.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from rlskit.errors import RequestError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Ending of a file's name (in any case) -> Pillow's name of the format."""

_DECODERS = sorted(set(FORMATS.values()))

MOST_PIXELS = 50_000_000
"""Of one image; decoded as float32 in colour, more would take over a gigabyte."""

_GRAY_MODES = {"1", "L", "LA", "La"}
_COLOUR_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"}
_SIXTEEN_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}


def decode(path: Path) -> Tensor:
    """Return the image in a file, float32 `[C, H, W]` in [0, 1], C being 1 or 3.

    Raises:
        RequestError: The file is missing, corrupt, enormous, or of a kind with no known range.
    """
    with _opened(path) as image:
        if _is_16_bit_gray(image):
            return torch.from_numpy(np.array(image).astype(np.float32)[None] / 65535)
        if image.mode in _GRAY_MODES:
            array = np.array(image.convert("L"))[..., None]
        else:
            if "transparency" in image.info:  # of a palette; Pillow warns unless told what to do
                image = image.convert("RGBA")
            array = np.array(image.convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float().div_(255)


class Look(NamedTuple):
    """What is seen of an image file that was read whole, and the `stamp` that it had then."""

    header: tuple[int, int, int]
    digest: bytes
    stamp: tuple[int, int]


def look(path: Path) -> Look | str:
    """Read an image file whole, a JPEG at an eighth of its size, or return why that fails.

    Any file that has its name is safe to look at: nothing is read of a pipe or a device.
    """
    if not path.is_file():
        return f"{path} is {_missing(path)}"
    try:
        with _opened(path) as image:
            seen, stamp = _header(image), _stamp(path)
            image.draft(image.mode, (image.width // 8, image.height // 8))
            image.load()
        return Look(seen, digest_of(path), stamp)
    except RequestError as error:
        return str(error).rpartition("; ")[0]


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written to."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def digest_of(path: Path, seen: Look | None = None) -> bytes:
    """Return the sha256 of a file's bytes, as it was seen if it has not changed since.

    Raises:
        RequestError: It cannot be read.
    """
    try:
        if seen is not None and seen.stamp == _stamp(path):
            return seen.digest
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read ({error.strerror}); repair or remove it"
        ) from error


def _missing(path: Path) -> str:
    if path.exists():
        return "no regular file"
    return "a link to nothing" if path.is_symlink() else "not there"


def header(path: Path) -> tuple[int, int, int]:
    """Return `(C, H, W)` of what `decode` would return, from the file's header alone.

    Raises:
        RequestError: As `decode`, as far as the header shows it.
    """
    with _opened(path) as image:
        return _header(image)


def _header(image: Image.Image) -> tuple[int, int, int]:
    gray = image.mode in _GRAY_MODES or _is_16_bit_gray(image)
    return (1 if gray else 3), image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image of a known mode; whatever goes wrong with it meanwhile is a RequestError."""
    try:
        # Only these decoders: a renamed file must not reach, say, the one that runs Ghostscript.
        with Image.open(path, formats=_DECODERS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"its {image.width}x{image.height} pixels are beyond the limit")
            if image.mode not in _GRAY_MODES | _COLOUR_MODES and not _is_16_bit_gray(image):
                raise RequestError(
                    f"{path} stores pixels as {image.mode}, whose range is not known; "
                    "convert it to 8 or 16 bits"
                )
            yield image
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # a corrupt file fails in any way its decoder can
        raise RequestError(
            f"{path} is no readable image ({reason(error)}); repair or remove it"
        ) from error


def _is_16_bit_gray(image: Image.Image) -> bool:
    # Older Pillow opens a 16-bit PNG as I, and every Pillow a 16-bit PGM; both hold 0 .. 65535.
    return image.mode in _SIXTEEN_BIT_MODES or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
