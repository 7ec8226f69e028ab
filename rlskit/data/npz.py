"""Images and labels in a numpy archive: `npz:PATH`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from rlskit.data.arrays import SPLITS, ArrayImages, as_pixels, check_split
from rlskit.data.classes import MOST_CLASSES
from rlskit.data.dataset import Data
from rlskit.data.faults import MissingSplitError
from rlskit.errors import RequestError, reason

if TYPE_CHECKING:
    from torch import Tensor

_ALWAYS_ALLOWED, _EXPANSION = 2**28, 20
"""Bytes that an archive may unpack to in any case, and times its size beyond that."""


def load_npz(path: str, split: str) -> Data:
    """Read one split of an `npz:` file.

    It holds `x_train, y_train, x_test, y_test` (either pair may be missing), and may hold
    `classes`, the number of classes, where that is more than the largest label tells.

    Raises:
        RequestError: The file is missing, unreadable or pickled, lacks the split, or holds images
            or labels of another kind.
    """
    name = f"npz:{path}"
    check_split(name, split)
    arrays = _read_npz(path, split)
    labels = {
        s: _as_labels(arrays[k], f"{k} of {name}") for s in SPLITS if (k := f"y_{s}") in arrays
    }
    pixels = as_pixels(arrays[f"x_{split}"], f"x_{split} of {name}")
    if len(pixels) != len(labels[split]):
        raise RequestError(
            f"{name} has {len(pixels)} images in x_{split} but {len(labels[split])} labels "
            f"in y_{split}"
        )
    classes = _count_classes(arrays, labels, name)
    names = tuple(map(str, range(classes)))
    return Data(name, split, names, labels[split], ArrayImages(name, pixels))


def _as_labels(labels: np.ndarray[Any, Any], what: str) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise RequestError(
            f"{what} must be one whole number per image, not {labels.dtype} {list(labels.shape)}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _count_classes(
    arrays: dict[str, np.ndarray[Any, Any]], labels: dict[str, Tensor], name: str
) -> int:
    """Return the entry `classes`, or else the largest label of any split and one more."""
    stated = arrays.get("classes")
    if stated is None:
        for split, one in labels.items():
            _check_plausible(one, f"y_{split} of {name}")
        return max(1, 1 + max(int(y.max()) if len(y) else 0 for y in labels.values()))
    whole = stated.dtype.kind in "iu" and stated.size == 1
    if not whole or not 1 <= stated.item() <= MOST_CLASSES:
        raise RequestError(
            f"the entry classes of {name} must be one positive whole number, at most {MOST_CLASSES}"
        )
    return int(stated.item())


def _check_plausible(labels: Tensor, what: str) -> None:
    odd = (labels >= MOST_CLASSES).nonzero().flatten()
    if len(odd):
        index = int(odd[0])
        raise RequestError(
            f"{what} has the label {int(labels[index])} at index {index}, which cannot be the "
            f"number of a class; at most {MOST_CLASSES} are read"
        )


def _read_npz(path: str, split: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays that one split needs, without ever unpickling anything."""
    pair = [f"x_{split}", f"y_{split}"]
    file = Path(path).expanduser()
    if not file.is_file():
        raise RequestError(f"npz:{path} is no file; name a numpy .npz file")
    try:
        with file.open("rb") as opened, _as_archive(np.load(opened, allow_pickle=False)) as archive:
            have = archive.files
            if not set(pair) <= set(have):
                raise MissingSplitError(
                    f"npz:{path} has no {' and '.join(pair)}; "
                    f"it holds {', '.join(sorted(have)) or 'nothing'}"
                )
            # Labels of both splits: together they tell the number of classes.
            wanted = {*pair, *(f"y_{s}" for s in SPLITS), "classes"} & set(have)
            _check_sizes(archive, sorted(wanted), file.stat().st_size)
            return {key: archive[key] for key in sorted(wanted)}
    except (MemoryError, MissingSplitError):
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib, struct, ast or numpy
        raise RequestError(
            f"npz:{path} is no readable .npz file of plain arrays ({reason(error)})"
        ) from error


def _check_sizes(archive: np.lib.npyio.NpzFile, keys: list[str], stored: int) -> None:
    """Require arrays that are as large as they claim, and no more than compression explains."""
    assert archive.zip is not None
    members = {Path(m.filename).name.removesuffix(".npy"): m for m in archive.zip.infolist()}
    total = sum(members[key].file_size for key in keys)
    if total > _ALWAYS_ALLOWED and total > _EXPANSION * stored:
        raise ValueError(
            f"it would unpack from {stored:,} to {total:,} bytes; np.savez stores more"
        )
    for key in keys:
        with archive.zip.open(members[key]) as file:
            shape, dtype = _header(file)
        if dtype.hasobject:
            raise ValueError(f"{key} holds Python objects, not numbers")
        if math.prod(shape) * dtype.itemsize > members[key].file_size:
            raise ValueError(f"{key} claims the shape {list(shape)}, but is smaller")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the dtype of a .npy file."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    shape, _, dtype = read[version](file)
    return shape, dtype


def _as_archive(loaded: Any) -> np.lib.npyio.NpzFile:
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, as .npy files are")
    return loaded
