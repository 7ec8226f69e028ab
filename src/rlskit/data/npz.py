"""Images and labels in a numpy archive: `npz:PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlskit.data.arrays import SPLITS, ArrayImages, as_pixels, check_split
from rlskit.data.dataset import Data
from rlskit.data.faults import MissingSplitError
from rlskit.errors import RequestError, reason

if TYPE_CHECKING:
    from torch import Tensor


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
        return max(1, 1 + max(int(y.max()) if len(y) else 0 for y in labels.values()))
    if stated.dtype.kind not in "iu" or stated.size != 1 or stated.item() < 1:
        raise RequestError(f"the entry classes of {name} must be one positive whole number")
    return int(stated.item())


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
            wanted = {*pair, *(f"y_{s}" for s in SPLITS), "classes"}
            return {key: archive[key] for key in have if key in wanted}
    except (MemoryError, MissingSplitError):
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib, struct, ast or numpy
        raise RequestError(
            f"npz:{path} is no readable .npz file of plain arrays ({reason(error)})"
        ) from error


def _as_archive(loaded: Any) -> np.lib.npyio.NpzFile:
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, as .npy files are")
    return loaded
