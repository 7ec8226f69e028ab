"""One split of a data set: labels in memory, and a source that gives the images."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rlskit.data.classes import are_numbers, placed
from rlskit.data.fit import MARGIN, MOST_LOST, lost
from rlskit.errors import RequestError
from rlskit.seeds import Purpose, generator

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from torch import Tensor

    from rlskit.pixels import Pixels


GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples modulo 1 fill [0, 1] evenly and keep step with no period."""


_SHOWN = 5


class Source(Protocol):
    """Where the images of a `Data` come from: `ArrayImages` or `FolderImages`."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    @property
    def channels(self) -> int:
        """Channels of every image that `read` returns."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image that `read` returns; refused where they differ."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """Return those images, float32 `[b, C, H, W]` in [0, 1]."""
        ...

    def subset(self, indices: Tensor) -> Source:
        """Return a source of those images alone, in that order."""
        ...

    def fitted(self, shape: tuple[int, int, int]) -> Source:
        """Return a source of the same images brought to `shape`; refuse to drop colour."""
        ...

    def sizes(self) -> Counter[tuple[int, int]]:
        """Return how many images are stored with each height and width."""
        ...

    def unreadable(self) -> dict[int, str]:
        """Return the index of each image that cannot be read, with a clause that says why."""
        ...

    def feed(self, digest: hashlib._Hash) -> None:
        """Add the stored bytes of every image, untouched by `fitted`, to `digest`."""
        ...


@dataclass(frozen=True, eq=False)
class Data:
    """One split of a data set.

    Attributes:
        name: The `--data` that named it, for example `digits` or `folder:photos`.
        split: The split that was read: `train`, `test`, `val`, or `all` for a flat folder.
        class_names: Name of each class, in the order of the labels.
        labels: Long `[n]`, each in 0 .. classes - 1.
        source: Gives the images.
        skipped: Images that cannot be read and were left out.
        indices: Of the images in the whole data set, long `[n]`, where these are but a part of it.
        paths: Of images from a folder, their paths in it, `[n]`.
        by_name: Whether a model must know the classes by their names, as somebody named them.
        order: The seed of the random order that they are in; None for the data set's own order.
        among: How many of a model's classes they are of, where `adapted` placed them among more.

    Raises:
        RequestError: There is no image, or a label that is no class.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: Tensor
    source: Source
    skipped: int = 0
    indices: Tensor | None = None
    paths: tuple[str, ...] | None = None
    by_name: bool = False
    order: int | None = None
    among: int | None = None

    def __post_init__(self) -> None:
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == (len(self.source),)
        assert self.indices is None or self.indices.shape == self.labels.shape
        assert self.paths is None or len(self.paths) == len(self.labels)
        where = f"the {self.split} split of {self.name}"
        if not len(self):
            raise RequestError(f"{where} holds no image; name data that does")
        bad = ((self.labels < 0) | (self.labels >= self.classes)).nonzero().flatten()
        if len(bad):
            index = int(bad[0])
            raise RequestError(
                f"{where} has the label {int(self.labels[index])} at index {index} "
                f"({len(bad)} such labels); the {self.classes} classes are 0 to {self.classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def index(self) -> Tensor:
        """The index of each image in the whole data set, long `[n]`, also after `limited`."""
        return torch.arange(len(self)) if self.indices is None else self.indices

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the images.

        Raises:
            RequestError: The images of a folder differ in size.
        """
        return self.source.shape

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the labels and of the stored pixels (for folders: the files' bytes).

        It names the data and not their place on disk; adapting them does not change it.
        """
        digest = hashlib.sha256(self.labels.numpy().astype("<i8").tobytes())
        self.source.feed(digest)
        return digest.hexdigest()

    def images(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the images at `indices`, float32 `[b, C, H, W]` in [0, 1].

        Raises:
            RequestError: An image file is corrupt, or the images of a folder differ in size.
        """
        return self.source.read(torch.as_tensor(indices, dtype=torch.int64))

    def subset(self, indices: Tensor | Sequence[int]) -> Data:
        """Return the data at `indices` alone, in that order."""
        kept = torch.as_tensor(indices, dtype=torch.int64)
        paths = None if self.paths is None else tuple(self.paths[i] for i in kept.tolist())
        return self._replaced(
            labels=self.labels[kept],
            source=self.source.subset(kept),
            indices=self.index[kept],
            paths=paths,
        )

    def checked(self, *, skip_bad: bool = False) -> Data:
        """Return the data after reading every image once, without those that cannot be read.

        Args:
            skip_bad: Leave such images out and count them, instead of refusing.

        Raises:
            RequestError: There are such images, the first of which are named; or only such.
        """
        bad = self.source.unreadable()
        if not bad:
            return self
        if not skip_bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise RequestError(
                f"{len(bad)} of {len(self)} images of {self.name} cannot be read: "
                f"{'; '.join(list(bad.values())[:_SHOWN])}{more}; repair or remove them, or leave "
                "them out with `skip_bad`"
            )
        if len(bad) == len(self):
            raise RequestError(f"no image of {self.name} can be read: {next(iter(bad.values()))}")
        kept = self.subset([index for index in range(len(self)) if index not in bad])
        return kept._replaced(skipped=self.skipped + len(bad))

    def called(self, names: Sequence[str] | dict[str, str]) -> Data:
        """Return the data under the names that a model has for their classes.

        Args:
            names: One for each number, if the classes are numbers; there may be more. Or one for
                each name: several classes may be one and the same to a model.

        Raises:
            RequestError: One is missing, or the classes have names already.
        """
        own = self.class_names
        if isinstance(names, dict):
            lacking = [name for name in own if name not in names]
            if lacking:
                raise RequestError(f"`classes` says nothing of {lacking[0]!r} of {self.name}")
            kept = tuple(dict.fromkeys(names[name] for name in own))
            labels = torch.tensor([kept.index(names[name]) for name in own])[self.labels]
            return self._replaced(class_names=kept, labels=labels, by_name=True)
        if not are_numbers(own):
            raise RequestError(
                f"the classes of {self.name} have names; `classes` must say which is which, with "
                f"a line such as {own[0]} = NAME each"
            )
        if len(names) < len(own):
            raise RequestError(
                f"`classes` has {len(names)} names, but {self.name} has labels up to {len(own) - 1}"
            )
        return self._replaced(class_names=tuple(names), by_name=not are_numbers(names))

    def limited(self, limit: int | None) -> Data:
        """Return at most `limit` images, spread evenly over the data set's order by `spread`.

        Of those in a random order it is the first, so that more images only add to fewer.

        Raises:
            RequestError: `limit` is below 1.
        """
        if limit is None or limit >= len(self):
            return self
        if self.order is not None and limit >= 1:
            return self.subset(range(limit))
        return self.subset(spread(len(self), limit))

    def shuffled(self, seed: int) -> Data:
        """Return the data in a random order, which depends on the seed and their number alone."""
        order = torch.randperm(len(self), generator=generator(seed, Purpose.IMAGE_ORDER))
        return self.subset(order)._replaced(order=seed)

    def resized(self, height: int, width: int) -> Data:
        """Return the data with every image at that size, its channels unchanged (see `adapted`)."""
        return self._replaced(source=self.source.fitted((self.source.channels, height, width)))

    def adapted(self, pixels: Pixels, classes: int, names: Sequence[str] = ()) -> Data:
        """Return the data as a checkpoint expects them.

        An image is resized (bilinear, antialiased) until it just covers the checkpoint's height
        and width, keeping its aspect ratio, and its centre is cut out (see `rlskit.data.fit`).
        Gray becomes three equal channels where three are expected. Classes are told by their names
        where both sides have them: the data may lack some, and number them otherwise.

        Args:
            pixels: The size and the channels that the checkpoint's classifier takes.
            classes: Its number of classes.
            names: Their names, where they are known.

        Raises:
            RequestError: The classes differ, or colour would have to be dropped.
        """
        source = self.source.fitted(pixels.shape)
        places = placed(self.class_names, names, self.name)
        if places is not None:
            labels = torch.tensor(places)[self.labels]
            among = self.classes if self.classes < len(names) else self.among
            return self._replaced(
                labels=labels, class_names=tuple(names), source=source, among=among
            )
        if self.by_name:
            raise RequestError(
                f"`classes` names those of {self.name} ({self.class_names[0]}, ...), but the "
                "checkpoint knows none of them; convert it with `classes`, its own in order"
            )
        if classes != self.classes:
            hint = self._hint_at_numbers()
            raise RequestError(
                f"{self.name} has {self.classes} classes{hint}, but the checkpoint has {classes}; "
                "use data of the same classes"
            )
        return self._replaced(source=source)

    def _hint_at_numbers(self) -> str:
        """Say what may be wrong with a number of classes that only the labels tell."""
        if self.name.startswith("npz:"):
            return " (its entry 'classes' can state it)"
        if not (self.name.startswith("manifest:") and are_numbers(self.class_names)):
            return ""
        if not (self.labels == 0).any():
            return " (no image has the label 0: are they counted from 1?)"
        return " (its labels are numbers up to the largest; `classes` can name all)"

    @cached_property
    def alterations(self) -> tuple[str, ...]:
        """Sentences that say how many images are cropped by more than `MARGIN`, or stretched."""
        _, height, width = self.shape
        sizes = self.source.sizes()
        share = {size: lost(*size, height, width) for size in sizes}
        cut = [size for size in sizes if MARGIN < share[size] < MOST_LOST]
        stretched = [size for size in sizes if share[size] >= MOST_LOST]
        found = []
        if cut:
            most = max(cut, key=lambda size: share[size])
            found.append(
                f"CROPPED: {sum(sizes[size] for size in cut)} of {len(self)} images lose up to "
                f"{share[most]:.0%} of an axis to become {height}x{width}; convert with "
                f"`image_size={most}` of their shape to keep it."
            )
        if stretched:
            most = max(stretched, key=lambda size: share[size])
            found.append(
                f"STRETCHED: {sum(sizes[size] for size in stretched)} of {len(self)} images are "
                f"resized to {height}x{width} without keeping their shape; convert with "
                f"`image_size={most}` of it to keep it."
            )
        return tuple(found)

    def _replaced(self, **fields: Any) -> Data:
        return dataclasses.replace(self, **fields)


def spread(count: int, limit: int) -> Tensor:
    """Return the indices of `limit` images among `count` or more, evenly spread, long `[limit]`.

    The order is cut into `limit` equal stretches and each gives one image, so that a folder sorted
    by class keeps every class of at least 2 / limit of its images. Which image of the stretch
    follows the golden ratio and not a fixed stride: MNIST alternates two kinds of writers, and a
    stride of 6 sees one of them only (mean pixel 0.1229, not 0.1307).

    Raises:
        RequestError: `limit` is below 1.
    """
    if limit < 1:
        raise RequestError(f"`limit` {limit} leaves no image; it must be at least 1")
    bounds = torch.arange(limit + 1) * count // limit
    where = torch.arange(limit, dtype=torch.float64) * GOLDEN_RATIO % 1
    return bounds[:-1] + (where * bounds.diff()).long()
