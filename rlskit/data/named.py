"""Data sets known by name: the embedded digits, and torchvision's."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlskit.data.arrays import SPLITS, ArrayImages, as_pixels, check_split
from rlskit.data.dataset import Data
from rlskit.errors import RequestError, RunError, reason
from rlskit.pixels import Pixels


@dataclass(frozen=True)
class DataFacts:
    """What a model must know of a data set before it is trained on it.

    Attributes:
        name: The `--data` that names it.
        classes: Number of classes.
        pixels: Channels, height and width of its images, and the mean and standard deviation of
            each channel over the training images, in [0, 1].
        class_names: Name of each class in the order of the labels, where they are known.
    """

    name: str
    classes: int
    pixels: Pixels
    class_names: tuple[str, ...] = ()


_CIFAR10 = Pixels(3, 32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = Pixels(3, 32, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_SVHN = Pixels(3, 32, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

DATASETS = {
    "digits": DataFacts("digits", 10, Pixels(1, 8, 8, (0.3054,), (0.3761,)), tuple("0123456789")),
    "mnist": DataFacts("mnist", 10, Pixels(1, 28, 28, (0.1307,), (0.3081,))),
    "fashion-mnist": DataFacts("fashion-mnist", 10, Pixels(1, 28, 28, (0.2860,), (0.3530,))),
    "cifar10": DataFacts("cifar10", 10, _CIFAR10, _CIFAR10_CLASSES),
    "cifar100": DataFacts("cifar100", 100, _CIFAR100),
    "svhn": DataFacts("svhn", 10, _SVHN),
}
"""Name -> facts, with the constants in common use for the training split.

`rlskit.data.sources.measure(load("digits", "train"))` gave those of digits.
"""

_TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
"""Name -> class of torchvision.datasets."""


def default_data_dir() -> Path:
    """Return where torchvision's data sets are kept: `rlskit/data` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlskit" / "data"


def load_digits(split: str) -> Data:
    """Return scikit-learn's 1797 real 8x8 handwritten digits: 1437 to train on, 360 to test on.

    The split is fixed and stratified. Source: UCI "Optical Recognition of Handwritten Digits",
    https://archive.ics.uci.edu/dataset/80, pixels 0 .. 16 that become [0, 1].

    Raises:
        RequestError: No such split.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    check_split("digits", split)
    digits = sklearn_digits()
    indices = np.arange(len(digits.target))
    halves = train_test_split(indices, test_size=0.2, random_state=0, stratify=digits.target)
    kept = halves[SPLITS.index(split)]
    pixels = as_pixels(digits.images[kept] / 16, "digits")
    labels = torch.from_numpy(digits.target[kept].astype(np.int64))
    return Data("digits", split, _numbers(10), labels, ArrayImages("digits", pixels))


def load_torchvision(name: str, split: str, data_dir: Path, *, download: bool) -> Data:
    """Return one split of a data set that torchvision reads from `data_dir`.

    Raises:
        RequestError: No such split, or the data set is missing or damaged.
        RunError: The download failed.
    """
    check_split(name, split)
    dataset = _open_torchvision(name, split, data_dir, download=download)
    labels = dataset.labels if name == "svhn" else dataset.targets
    class_names = tuple(getattr(dataset, "classes", _numbers(DATASETS[name].classes)))
    source = ArrayImages(name, as_pixels(dataset.data, name))
    return Data(name, split, class_names, torch.as_tensor(labels, dtype=torch.int64), source)


def _open_torchvision(name: str, split: str, data_dir: Path, *, download: bool) -> Any:
    from rlskit.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    which: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
    if download:
        _download(dataset, name, which, data_dir)
    try:
        with warnings.catch_warnings():
            # The pickles of CIFAR say align=0 where NumPy 2.4 wants a boolean.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            return dataset(data_dir, **which)
    except MemoryError:
        raise
    except Exception as error:  # missing is a RuntimeError; damage fails in any way
        raise RequestError(
            f"{name} is missing or damaged in {data_dir}; fetch it with `download`, "
            "or name the folder that holds it with `data_dir`"
        ) from error


def _download(dataset: Any, name: str, which: dict[str, Any], data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # stdout is for the result
            dataset(data_dir, **which, download=True)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{name} could not be downloaded to {data_dir} ({reason(error)})") from error


def _numbers(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))
