"""Saved adversarial images beside what they were made from: sheets of small pictures.

Shapes: n images of one attack, C channels, H x W pixels.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rlskit.data import Data, load, spread
from rlskit.data.adversarial_file import SavedAdversarial, SavedData, read_adversarial
from rlskit.errors import RequestError, RlskitError, reason
from rlskit.report.reported import Row
from rlskit.results import ADVERSARIAL, Result
from rlskit.results.journal import PER_IMAGE
from rlskit.results.words import attack_label, seen

if TYPE_CHECKING:
    from torch import Tensor

LARGEST, SMALLEST = 96, 32
"""Longest side of a picture in pixels: at most, and where there are many."""

PIXELS = 9_500_000
"""Numbers that all pictures hold together; as PNG in base64 at most 13 MB."""

DISTANCES = ("linf", "l2", "l1", "l0")


@dataclass(frozen=True)
class Origin:
    """Where the images before an attack may be found.

    Attributes:
        spec: What data they are; None for those that the file of adversarial images names.
        data_dir: Where torchvision's data sets lie.
        follow: Whether a path in such a file may be followed, as it is the user's own.
    """

    spec: str | None = None
    data_dir: str | Path | None = None
    follow: bool = False


@dataclass(frozen=True)
class Gallery:
    """All pictures of a report.

    Attributes:
        pictures: PNG files in base64; sheets with the pictures of many images.
        sheets: One for each attack: its row, attack, and which picture holds what.
        images: One for each image: its sheet, place, labels, answers and distances.
        class_names: Label -> name.
        notes: What a reader must know: thumbnails, images left out or not at hand.
    """

    pictures: tuple[str, ...] = ()
    sheets: tuple[dict[str, Any], ...] = ()
    images: tuple[dict[str, Any], ...] = ()
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Attacked:
    """The images of one attack.

    Attributes:
        row: The model.
        result: The attack's result.
        saved: Its images.
        before: The images that they were made from; None where they are not at hand.
        table: Their lines in the per-image table.
    """

    row: str
    result: Result
    saved: SavedAdversarial
    before: Data | None
    table: list[dict[str, str]]


@dataclass
class _Album:
    """Pictures, each kept once."""

    places: dict[str, int] = field(default_factory=dict)

    def place(self, picture: str) -> int:
        return self.places.setdefault(picture, len(self.places))


def gallery(rows: Sequence[Row], origin: Origin) -> Gallery:
    """Return the saved images of all attacks, as small as they must be."""
    notes: list[str] = []
    attacked = list(_attacked(rows, origin, notes))
    if not attacked:
        return Gallery(notes=tuple(notes))
    edge, most = _room(attacked)
    album = _Album()
    sheets: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for one in attacked:
        count = len(one.saved.data)
        chosen = spread(count, most) if count > most else None
        sheet, own = _sheet(one, edge, chosen, album, len(sheets))
        sheets.append(sheet)
        images += own
    notes += _said(attacked, edge, most)
    names = next((one.before.class_names for one in attacked if one.before is not None), ())
    return Gallery(tuple(album.places), tuple(sheets), tuple(images), names, tuple(notes))


def _attacked(rows: Sequence[Row], origin: Origin, notes: list[str]) -> Iterator[_Attacked]:
    """Yield the attacks whose images were saved; note those that cannot be read."""
    known: dict[tuple[str, tuple[int, ...]], Data | None] = {}
    for row in rows:
        for part in (part for cell in row.cells for part in cell.parts if len(part.tables) == 1):
            folder = part.tables[0].parent
            if not (folder / ADVERSARIAL).is_file():
                continue
            try:
                saved = read_adversarial(folder / ADVERSARIAL)
                table = _table(folder / PER_IMAGE, saved)
            except RlskitError as error:
                notes.append(f"Images left out: {error}")
                continue
            key = saved.about.data.sha256, saved.data.shape
            if key not in known:
                known[key] = _before(saved.about.data, saved.data.shape, origin)
            yield _Attacked(row.label, part.result, saved, known[key], table)


def _before(about: SavedData, shape: tuple[int, int, int], origin: Origin) -> Data | None:
    """Return the images that adversarial ones were made from, if their digest says so."""
    if origin.spec is None and ":" in about.name and not origin.follow:
        return None
    with suppress(RlskitError, OSError):
        data = load(
            origin.spec or about.name, about.split, data_dir=origin.data_dir, limit=about.n,
            order=about.order,
        )  # fmt: skip
        if data.sha256 == about.sha256:
            return replaced(data, source=data.source.fitted(shape))
    return None


def _table(file: Path, saved: SavedAdversarial) -> list[dict[str, str]]:
    """Return the first repeat's lines of a per-image table.

    Raises:
        RequestError: It is not of the saved images.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            found = [line for line in csv.DictReader(lines) if line.get("repeat") == "0"]
        labels = [int(line["label"]) for line in found]
        for line in found:
            _ = int(line["index"]), int(line["robust"]), int(line.get("clean") or 0)
    except (OSError, TypeError, ValueError, KeyError, csv.Error) as error:
        raise RequestError(f"{file} is damaged ({reason(error)}); run it again") from error
    if labels != saved.data.labels.tolist():
        raise RequestError(f"{file} is not of the images in {ADVERSARIAL}; run it again")
    return found


def _room(attacked: Sequence[_Attacked]) -> tuple[int, int]:
    """Return the longest side of a picture, and how many images of an attack are shown."""
    shapes = [(len(one.saved.data), one.saved.data.shape) for one in attacked]
    longest = max(max(shape[1:]) for _, shape in shapes)
    layers = 3 * max(_colours(shape[0]) for _, shape in shapes)  # before, after, difference
    fitting = math.isqrt(PIXELS // (layers * sum(count for count, _ in shapes)))
    edge = min(longest, LARGEST, max(fitting, SMALLEST))
    return edge, max(1, PIXELS // (layers * edge**2 * len(shapes)))


def _sheet(
    one: _Attacked, edge: int, chosen: Tensor | None, album: _Album, number: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the sheet of an attack, and its images."""
    import torch

    places = torch.arange(len(one.saved.data)) if chosen is None else chosen
    after = one.saved.data.images(places)
    sheet: dict[str, Any] = {
        "row": one.row,
        "attack": f"{attack_label(one.result)}, {seen(one.result)}",
        "adversarial": album.place(_picture(after, edge)),
        "clean": None,
        "difference": None,
    }
    factors: list[float | None] = [None] * len(places)
    if one.before is not None:
        before = one.before.images(places)
        amplified, factors = _amplified(after - before)
        sheet["clean"] = album.place(_picture(before, edge))
        sheet["difference"] = album.place(_picture(amplified, edge))
    height, width = _size(after.shape[-2:], edge)
    sheet |= {"columns": _columns(len(places)), "width": width, "height": height}
    images = [
        _image(one.table[place], number, position, factor)
        for position, (place, factor) in enumerate(zip(places.tolist(), factors, strict=True))
    ]
    return sheet, images


def _amplified(change: Tensor) -> tuple[Tensor, list[float | None]]:
    """Return changes `[n, C, H, W]` around 0.5, as large as fits, and how many times they are."""
    largest = change.abs().flatten(1).amax(1)
    factors = [round(0.5 / value, 1) if value > 0 else None for value in largest.tolist()]
    return 0.5 + change * (0.5 / largest.clamp(min=1e-12))[:, None, None, None], factors


def _image(line: dict[str, str], sheet: int, position: int, factor: float | None) -> dict[str, Any]:
    """Return what the page knows of an image."""
    label = int(line["label"])
    clean = int(line["clean"]) if line.get("clean") else None
    robust = int(line["robust"])
    state = "held" if robust == label else "broken"
    if clean is not None and clean != label:
        state = "wrong"
    found: dict[str, Any] = {
        "sheet": sheet, "place": position, "index": int(line["index"]), "label": label,
        "clean": clean, "robust": robust, "state": state, "factor": factor,
    }  # fmt: skip
    for name in (*DISTANCES, "clean_gibbs", "robust_gibbs"):
        with suppress(KeyError, ValueError):
            value = float(line[name])
            if math.isfinite(value):
                found[name] = float(f"{value:.4g}")
    if "path" in line:
        found["path"] = line["path"]
    return found


def _picture(images: Tensor, edge: int) -> str:
    """Return images `[n, C, H, W]` in [0, 1] side by side, as PNG in base64."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    values: NDArray[np.uint8] = (images * 255).round().clamp(0, 255).byte().numpy()
    values = values.transpose(0, 2, 3, 1)
    size = _size(values.shape[1:3], edge)
    columns = _columns(len(values))
    colours = values.shape[3]
    sheet = np.zeros((-(-len(values) // columns) * size[0], columns * size[1], colours), np.uint8)
    for position, one in enumerate(values):
        if one.shape[:2] != size:
            small = Image.fromarray(one.squeeze()).resize((size[1], size[0]), Image.Resampling.BOX)
            one = np.asarray(small).reshape(*size, colours)
        top, left = position // columns * size[0], position % columns * size[1]
        sheet[top : top + size[0], left : left + size[1]] = one
    stream = io.BytesIO()
    Image.fromarray(sheet.squeeze(-1) if colours == 1 else sheet).save(
        stream, "PNG", compress_level=3
    )
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _size(size: Sequence[int], edge: int) -> tuple[int, int]:
    """Return height and width of a picture whose longest side is at most `edge`."""
    scale = min(1.0, edge / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def _columns(count: int) -> int:
    return math.isqrt(max(count - 1, 0)) + 1


def _colours(channels: int) -> int:
    return 3 if channels == 3 else 1


def _said(attacked: Sequence[_Attacked], edge: int, most: int) -> Iterator[str]:
    """Yield what the page says of its pictures."""
    sizes = {tuple(one.saved.data.shape[1:]) for one in attacked}
    for height, width in sorted(size for size in sizes if max(size) > edge):
        yield f"The pictures are thumbnails: the images have {height} x {width} pixels."
    if any(len(one.saved.data) > most for one in attacked):
        yield f"So that the page stays small, it shows {most} images of each attack, spread evenly."
    if any(one.before is None for one in attacked):
        yield (
            "Some images stand alone, because those before the attack are not at hand. Make the "
            "report again and name their data, which are taken if their digest is the run's."
        )
    if any(one.result.repeats > 1 for one in attacked):
        yield "Of several repeats the images and answers of the first are shown."
