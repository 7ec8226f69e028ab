"""Images in folders, one folder per class: `folder:PATH`.

PATH holds the class folders of each split in `train`, `test` or `val`, or it is flat and holds the
class folders itself. Names that start with a dot and files that are no images are passed over;
what is called like an image and is none is refused, or left out and counted (`Data.checked`).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlskit.data.dataset import Data
from rlskit.data.decode import FORMATS, Look, decode, digest_of, header, look
from rlskit.data.faults import MissingSplitError
from rlskit.data.fit import check_channels, fit
from rlskit.errors import RequestError

if TYPE_CHECKING:
    import hashlib

_READERS = 4  # threads, each of which may hold an image
_AT_ONCE = 32  # files that a thread is given: it takes longer to give one than to read it
_SMALL = 16_384  # bytes of a file that threads would sooner wait for each other than read

SPLITS = ("train", "test", "val")


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images in files, decoded each time they are read.

    Attributes:
        name: Whose images they are, for messages.
        paths: The image files.
        target: `(C, H, W)` that the images are brought to; None for their own.
    """

    name: str
    paths: tuple[Path, ...]
    target: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def channels(self) -> int:
        """Channels of every image that `read` returns; gray among colour counts as colour."""
        return self.target[0] if self.target else max(c for c, _, _ in self._headers)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image that `read` returns.

        Raises:
            RequestError: The images differ in size and were not brought to one.
        """
        if self.target:
            return self.target
        _, *size = self._headers[0]
        for path, (_, *other) in zip(self.paths, self._headers, strict=True):
            if other != size:
                raise RequestError(
                    f"{self.name} holds images of different sizes ({self.paths[0]} has "
                    f"{size[0]}x{size[1]} pixels, {path} {other[0]}x{other[1]}), which no batch "
                    "can hold; state an image size or resize them to one"
                )
        return self.channels, size[0], size[1]

    def read(self, indices: Tensor) -> Tensor:
        """Return those images, float32 `[b, C, H, W]` in [0, 1].

        Raises:
            RequestError: A file is corrupt, or the sizes differ.
        """
        shape = self.shape
        images = [fit(decode(self.paths[i])[None], shape) for i in indices.tolist()]
        return torch.cat(images) if images else torch.empty(0, *shape)

    def subset(self, indices: Tensor) -> FolderImages:
        """Return those images alone, in that order."""
        return dataclasses.replace(self, paths=tuple(self.paths[i] for i in indices.tolist()))

    def fitted(self, shape: tuple[int, int, int]) -> FolderImages:
        """Return the images brought to `shape`.

        Raises:
            RequestError: Colour would have to be dropped.
        """
        if shape[0] != 3:  # 1 and 3 channels both become 3: no need to look
            for path, (channels, _, _) in zip(self.paths, self._headers, strict=True):
                check_channels(f"{self.name} ({path})", channels, shape[0])
        found = dataclasses.replace(self, target=shape)
        known = {name: one for name, one in vars(self).items() if name in ("_headers", "_looks")}
        vars(found).update(known)  # the same files: no need to look again
        return found

    def sizes(self) -> Counter[tuple[int, int]]:
        """Return how many images are stored with each height and width."""
        return Counter((height, width) for _, height, width in self._headers)

    def unreadable(self) -> dict[int, str]:
        """Return the index of each image that cannot be read, with a clause that says why.

        Every image is decoded once; what else is seen of it is kept, if all can be read.
        """
        seen = _look_at(self.paths[:_AT_ONCE])
        if sum(one.stamp[1] for one in seen if isinstance(one, Look)) < _SMALL * len(seen):
            seen += _look_at(self.paths[_AT_ONCE:])
        else:
            some = [self.paths[i : i + _AT_ONCE] for i in range(_AT_ONCE, len(self), _AT_ONCE)]
            with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
                seen += [one for looks in pool.map(_look_at, some) for one in looks]
        whole = [one for one in seen if isinstance(one, Look)]
        if len(whole) == len(seen):
            vars(self).update(_headers=[one.header for one in whole], _looks=whole)
        return {index: said for index, said in enumerate(seen) if isinstance(said, str)}

    def feed(self, digest: hashlib._Hash) -> None:
        """Add the digest of each file's bytes to `digest`."""
        for path, seen in zip(self.paths, self._looks, strict=True):
            digest.update(digest_of(path, seen))

    @cached_property
    def _headers(self) -> list[tuple[int, int, int]]:
        return [header(path) for path in self.paths]

    @cached_property
    def _looks(self) -> Sequence[Look | None]:
        return [None] * len(self.paths)


def _look_at(paths: Sequence[Path]) -> list[Look | str]:
    return [look(path) for path in paths]


def load_folder(path: str, split: str) -> Data:
    """Read one split of an image folder.

    Classes are numbered by the sorted names of the class folders over all splits. Without a `test`
    folder, `test` is `val`, as ImageNet has it. A flat folder serves whatever split is asked for,
    under the name `all`: train and test on it and they are the same images.

    Raises:
        RequestError: The folder is missing, lacks the split, has no class folders, or one of the
            class folders holds no image.
    """
    name, root = f"folder:{path}", Path(path).expanduser()
    roots = _split_roots(root, name)
    if split not in (*SPLITS, *roots):  # what a result calls it is read again, `all` included
        raise RequestError(f"`split` {split!r} is unknown; it is {', '.join(SPLITS)}")
    for found in (split, "all", *(["val"] if split == "test" else [])):
        if found in roots:
            break
    else:
        raise MissingSplitError(f"{name} has no folder {split}; it has {', '.join(roots)}")
    class_names = sorted({folder.name for r in roots.values() for folder in _folders(r)})
    paths, labels = [], []
    for folder in _folders(roots[found]):
        files = _image_files(folder)
        paths += files
        labels += [class_names.index(folder.name)] * len(files)
    source = FolderImages(name, tuple(paths))
    below = tuple(str(path.relative_to(root)) for path in paths)
    labelled = torch.tensor(labels, dtype=torch.int64)
    return Data(name, found, tuple(class_names), labelled, source, paths=below)


def _split_roots(root: Path, name: str) -> dict[str, Path]:
    """Return split -> the folder that holds its class folders; `all` alone for a flat folder."""
    if not root.is_dir():
        raise RequestError(f"{name} is no folder; name one that holds a folder per class")
    # A class may be called train: a split is told by the class folders in it.
    roots = {s: root / s for s in SPLITS if (root / s).is_dir() and _folders(root / s)}
    if not roots and not _folders(root):
        raise RequestError(
            f"{name} holds no folders; it needs one per class, with the images in it"
        )
    return roots or {"all": root}


def _folders(root: Path) -> list[Path]:
    try:
        found = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise RequestError(f"{root} cannot be read ({error.strerror})") from error
    for folder in found:
        if folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            raise RequestError(f"{folder} is a link to a folder that it lies in; remove it")
    return found


def _image_files(folder: Path) -> list[Path]:
    """Return the image files anywhere below a class folder, in the order of their paths."""
    files = [
        Path(parent) / file
        for parent, _, names in os.walk(folder)
        for file in names
        if not file.startswith(".") and Path(file).suffix.lower() in FORMATS
    ]
    if not files:
        known = " ".join(FORMATS)
        raise RequestError(f"the class folder {folder} holds no image ({known}); fill or remove it")
    return sorted(files)
