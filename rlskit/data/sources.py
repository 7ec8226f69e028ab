"""From `--data` to data: the one place that knows every kind of data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlskit.arguments import in_own_modes
from rlskit.data.batches import blocks
from rlskit.data.classes import ClassNames, read_names
from rlskit.data.faults import MissingSplitError
from rlskit.data.folder import load_folder
from rlskit.data.manifest import load_manifest
from rlskit.data.named import DATASETS, DataFacts, default_data_dir, load_digits, load_torchvision
from rlskit.data.npz import load_npz
from rlskit.errors import RequestError
from rlskit.pixels import Pixels

if TYPE_CHECKING:
    from rlskit.data.dataset import Data

KINDS: dict[str, Callable[[str, str], Data]] = {
    "folder": load_folder,
    "manifest": load_manifest,
    "npz": load_npz,
}
"""Kind of data that lie at a path, as in `folder:PATH` -> what loads a split of them."""

SPECS = (*DATASETS, *(f"{kind}:PATH" for kind in KINDS))
"""What `--data` may be."""

MEASURED = 10_000
"""At most so many images give the mean and standard deviation of a folder or npz file."""


@in_own_modes()
def load(
    spec: str,
    split: str = "test",
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
    classes: ClassNames | None = None,
    order: int | None = None,
) -> Data:
    """Return one split of a data set, after every image file was read once.

    Args:
        spec: `digits`, a data set of torchvision by its key in `DATASETS`, `folder:PATH` (see
            `load_folder`), `manifest:FILE` (see `load_manifest`) or `npz:PATH` (see `load_npz`).
        split: `train` or `test`; a folder may have `val` too.
        data_dir: Where torchvision's data sets are; None for `default_data_dir()`.
        download: Fetch one of torchvision's that is not there.
        limit: Keep at most this many images, spread evenly (`Data.limited`).
        skip_bad: Leave out images that cannot be read, and count them as `Data.skipped`.
        classes: What a model calls the data's classes (see `read_names`).
        order: The seed of a random order (`Data.shuffled`), of which `limit` keeps the first.

    Raises:
        RequestError: `spec` is unknown, or its data are missing, unreadable or not as expected.
        RunError: The download failed.
    """
    names = None if classes is None else read_names(classes)
    data = _load(spec, split, data_dir=data_dir, download=download)
    if names is not None:
        data = data.called(names)
    if order is not None:
        data = data.shuffled(order)
    return data.limited(limit).checked(skip_bad=skip_bad)


def count(spec: str, split: str = "test") -> int:
    """Return how many images a data set has, before any file is read that holds one.

    Args:
        spec: As of `load`.
        split: Likewise.

    Raises:
        RequestError: `spec` is unknown, or its data are missing, or not as expected.
    """
    return len(_load(spec, split, data_dir=None, download=False))


def _load(spec: str, split: str, *, data_dir: str | Path | None, download: bool) -> Data:
    kind, _, path = spec.partition(":")
    if kind in KINDS and path:
        return KINDS[kind](path, split)
    if spec == "digits":
        return load_digits(split)
    if spec in DATASETS:
        where = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        return load_torchvision(spec, split, where, download=download)
    raise RequestError(f"`data` {spec!r} is unknown; {_meant(spec)}")


def _meant(spec: str) -> str:
    """Return what an unknown `--data` may have been meant to be."""
    place = Path(spec).expanduser()
    if spec and place.is_dir():
        return f"did you mean folder:{spec}?"
    if spec and place.exists():
        table = place.suffix.lower() in (".csv", ".tsv", ".parquet", ".pq")
        kind = "manifest" if table else "npz" if place.suffix == ".npz" else ""
        return f"did you mean {kind}:{spec}?" if kind else "a file of images must be npz:PATH.npz"
    near = get_close_matches(spec.lower().replace("_", "-"), DATASETS, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}it is one of {', '.join(SPECS)}"


def describe(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
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
        skip_bad: As in `load`.

    Raises:
        RequestError: As `load`; or the images of a folder differ in size and `size` is None.
    """
    if spec in DATASETS:
        facts = DATASETS[spec]
        height, width = size or facts.pixels.shape[1:]
        return replace(facts, pixels=replace(facts.pixels, height=height, width=width))
    try:
        data = _load(spec, "train", data_dir=data_dir, download=download)
    except MissingSplitError:
        data = _load(spec, "test", data_dir=data_dir, download=download)
    some = data.limited(MEASURED).checked(skip_bad=skip_bad)
    pixels = measure(some.resized(*size) if size else some)
    return DataFacts(spec, data.classes, pixels, data.class_names)


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
