"""From `--data` to data: the one place that knows every kind of data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlskit.data.batches import blocks
from rlskit.data.faults import MissingSplitError
from rlskit.data.folder import load_folder
from rlskit.data.named import (
    DATASETS,
    DataFacts,
    default_data_dir,
    load_digits,
    load_torchvision,
)
from rlskit.data.npz import load_npz
from rlskit.errors import RequestError
from rlskit.pixels import Pixels

if TYPE_CHECKING:
    from rlskit.data.dataset import Data

SPECS = (*DATASETS, "folder:PATH", "npz:PATH")
"""What `--data` may be."""

MEASURED = 10_000
"""At most so many images give the mean and standard deviation of a folder or npz file."""


def load(
    spec: str,
    split: str = "test",
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
) -> Data:
    """Return one split of a data set.

    Args:
        spec: `digits`, a data set of torchvision by its key in `DATASETS`, `folder:PATH` (see
            `load_folder`) or `npz:PATH` (see `load_npz`).
        split: `train` or `test`; a folder may have `val` too.
        data_dir: Where torchvision's data sets are; None for `default_data_dir()`.
        download: Fetch one of torchvision's that is not there.
        limit: Keep at most this many images, spread evenly (`Data.limited`).

    Raises:
        RequestError: `spec` is unknown, or its data are missing, unreadable or not as expected.
        RunError: The download failed.
    """
    kind, _, path = spec.partition(":")
    if kind in ("folder", "npz") and path:
        data = (load_folder if kind == "folder" else load_npz)(path, split)
    elif spec == "digits":
        data = load_digits(split)
    elif spec in DATASETS:
        where = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        data = load_torchvision(spec, split, where, download=download)
    else:
        raise RequestError(f"--data {spec!r} is unknown; it is one of {', '.join(SPECS)}")
    return data.limited(limit)


def describe(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    size: tuple[int, int] | None = None,
) -> DataFacts:
    """Return the classes, image size and normalisation constants of a data set.

    Those of a named data set are known without its files. Those of a folder or npz file are
    measured on its training split, or its test split where it has no other.

    Args:
        spec: As in `load`.
        data_dir: As in `load`.
        download: As in `load`.
        size: Height and width that the images are to be brought to; None for their own. A folder
            of images of different sizes needs it.

    Raises:
        RequestError: As `load`; or the images of a folder differ in size and `size` is None.
    """
    if spec in DATASETS:
        facts = DATASETS[spec]
        height, width = size or facts.pixels.shape[1:]
        return replace(facts, pixels=replace(facts.pixels, height=height, width=width))
    try:
        data = load(spec, "train", data_dir=data_dir, download=download)
    except MissingSplitError:
        data = load(spec, "test", data_dir=data_dir, download=download)
    return DataFacts(spec, data.classes, measure(data.resized(*size) if size else data))


def measure(data: Data) -> Pixels:
    """Return the size of the images, and each channel's mean and standard deviation, in [0, 1].

    Both are over all pixels of at most `MEASURED` images, spread evenly (`Data.limited`).

    Raises:
        RequestError: An image is corrupt, the sizes differ, or a channel is constant.
    """
    channels, height, width = data.shape
    some = data.limited(MEASURED)
    total, squares = torch.zeros(2, channels, dtype=torch.float64)
    for _, images, _ in blocks(some, batch_size=64):
        values = images.double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = len(some) * height * width
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return Pixels(channels, height, width, tuple(mean.tolist()), tuple(std.tolist()))
