"""Images that a table names: `manifest:FILE`, with the columns `path` and `label`.

The table is CSV (`.tsv`: with tabs) or parquet. Paths are relative to its folder. Labels are all
numbers from 0 on, or names, which are numbered in sorted order as a folder's are. A column `split`
may say which images are of train, test and val; other columns are passed over.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlskit.data.classes import MOST_CLASSES
from rlskit.data.dataset import Data
from rlskit.data.faults import MissingSplitError
from rlskit.data.folder import SPLITS, FolderImages
from rlskit.errors import RequestError, reason

_COLUMNS = ("path", "label")
_NUMBER = re.compile(r"0|[1-9]\d*")
_ODD_NUMBER = re.compile(r"[+-]?\d*\.\d*(e[+-]?\d+)?|[+-]\d+|nan|", re.IGNORECASE)
"""What a table makes of numbers when it spoils them, as `3.0` where a label is missing."""

Column = Sequence[str]


def load_manifest(path: str, split: str) -> Data:
    """Read one split of the images that a table names.

    Without a column `split`, all images serve whatever split is asked for, under the name `all`;
    with one, and no image of `test`, `test` is `val`.

    Raises:
        RequestError: The table is missing or unreadable, lacks a column or the split, names an
            image twice, or has labels that are neither names nor numbers from 0 on.
    """
    name, file = f"manifest:{path}", Path(path).expanduser()
    columns = _columns(file, name)
    class_names = _class_names(columns["label"], name)
    found, rows = _of_split(columns, split, name)
    paths = tuple(columns["path"][row] for row in rows)
    numbers = {label: number for number, label in enumerate(class_names)}
    labels = torch.tensor([numbers[columns["label"][row]] for row in rows], dtype=torch.int64)
    source = FolderImages(name, tuple(file.parent / one for one in paths))
    return Data(name, found, class_names, labels, source, paths=paths)


def named_files(path: str) -> list[Path]:
    """Return the images of all splits that a table names.

    Raises:
        RequestError: The table is missing or unreadable, or lacks a column.
    """
    file = Path(path).expanduser()
    return [file.parent / one for one in _columns(file, f"manifest:{path}")["path"]]


def _columns(file: Path, name: str) -> Mapping[str, Column]:
    """Return the columns that count, as text."""
    if not file.is_file():
        raise RequestError(f"{name} is no file; name a table with the columns path and label")
    read = _parquet if file.suffix.lower() in (".parquet", ".pq") else _csv
    try:
        columns = read(file)
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # a damaged table fails in any way its reader can
        raise RequestError(f"{name} cannot be read as a table ({reason(error)})") from error
    lacking = [column for column in _COLUMNS if column not in columns]
    if lacking:
        has = ", ".join(columns) or "none"
        raise RequestError(f"{name} lacks the column {' and '.join(lacking)}; it has {has}")
    twice = [one for one, count in Counter(columns["path"]).items() if count > 1]
    if twice:
        raise RequestError(
            f"{name} names {twice[0] or 'an empty path'} more than once ({len(twice)} such paths); "
            "an image counts once"
        )
    return columns


def _csv(file: Path) -> dict[str, Column]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        header = [column.strip() for column in next(rows, [])]
        lines = [(rows.line_num, row) for row in rows if row]
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} fields, not {len(header)}")
    fields = [[row[place].strip() for _, row in lines] for place in range(len(header))]
    return dict(zip(header, fields, strict=True))


def _parquet(file: Path) -> dict[str, Column]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise RequestError(
            f"{file} is parquet, which pyarrow reads: pip install 'rlskit[parquet]', or save the "
            "table as CSV"
        ) from None
    known = parquet.read_schema(file).names
    wanted = [column for column in (*_COLUMNS, "split") if column in known]
    if len(wanted) < len(_COLUMNS):
        return {column: () for column in known if column not in _COLUMNS or column in wanted}
    table = parquet.read_table(file, columns=wanted)
    return {column: [_text(one) for one in table[column].to_pylist()] for column in wanted}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _class_names(labels: Column, name: str) -> tuple[str, ...]:
    """Return the names of the classes: in sorted order, or the numbers up to the largest.

    Raises:
        RequestError: A label is empty, a fraction or negative, or beyond reason.
    """
    distinct = set(labels)
    odd = sorted(label for label in distinct if _ODD_NUMBER.fullmatch(label))
    if odd:
        raise RequestError(
            f"{name} has the label {odd[0]!r}; a label is a name, or a whole number from 0 on"
        )
    if not all(map(_NUMBER.fullmatch, distinct)):
        return tuple(sorted(distinct))
    largest = max(map(int, distinct), default=-1)
    if largest >= MOST_CLASSES:
        raise RequestError(f"{name} has the label {largest}, beyond reason")
    return tuple(map(str, range(largest + 1)))


def _of_split(columns: Mapping[str, Column], split: str, name: str) -> tuple[str, list[int]]:
    """Return the split that is there for the one that is asked for, and its rows."""
    if split not in SPLITS:
        raise RequestError(f"`split` {split!r} is unknown; it is {', '.join(SPLITS)}")
    if "split" not in columns:
        return "all", list(range(len(columns["path"])))
    there = Counter(columns["split"])
    odd = sorted(set(there) - set(SPLITS))
    if odd:
        raise RequestError(f"{name} has the split {odd[0]!r}; it is {', '.join(SPLITS)}")
    found = "val" if split == "test" and "test" not in there else split
    if found not in there:
        raise MissingSplitError(f"{name} has no image of {split}; it has {', '.join(there)}")
    return found, [row for row, one in enumerate(columns["split"]) if one == found]
