"""A finished run, read back: its results, and which of its images each was right on.

Shapes: n images, R repeats.
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlskit.errors import RequestError, reason
from rlskit.results.journal import PER_IMAGE, RESULTS
from rlskit.results.reading import read_results
from rlskit.results.result import Result
from rlskit.results.words import attack_label
from rlskit.stats import accuracy, anytime

PATH = "path"
"""The column of a per-image table with the paths of images from a folder."""

KINDS = ("clean", "robust")
"""Accuracies that are read image by image, where they were scored."""


@dataclass(frozen=True)
class Finished:
    """A result with its per-image tables.

    Attributes:
        result: The result.
        tables: One file; for the worst case over several attacks, one of each.
    """

    result: Result
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of a run holds.

    Attributes:
        folder: The folder.
        parts: Results with their per-image tables, at least one.
        left_out: Results without one, and why, for people.
    """

    folder: Path
    parts: tuple[Finished, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """The images of a result.

    Attributes:
        index: Their indices in the data set, ascending `[n]`.
        label: Their labels `[n]`.
        given: `clean` and `robust`, where scored -> the classes that were answered, `[R, n]`; under
            several attacks a wrong one where there is any.
        paths: Of images from a folder, their paths there `[n]`.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    given: dict[str, NDArray[np.int64]]
    paths: tuple[str, ...] | None = None

    @property
    def right(self) -> dict[str, NDArray[np.bool_]]:
        """The same kinds -> whether each image was right, `[R, n]`."""
        return {kind: given == self.label for kind, given in self.given.items()}


def read_run(path: Path) -> FinishedRun:
    """Read a finished run of `attack` or `eval`.

    Args:
        path: The run's folder or its `results.json`, with the per-image tables beside it.

    Raises:
        RequestError: There is none, it cannot be read, or it keeps no answers per image.
    """
    file = path / RESULTS if path.is_dir() else path
    folder, results = file.parent, read_results(file)
    command = results[0].command
    if command not in ("attack", "eval"):
        raise RequestError(
            f"{file} is of `rlskit {command}`, which keeps no answers per image; name a run of "
            "attack or eval"
        )
    own = (folder / PER_IMAGE,)
    if len(results) == 1:
        return FinishedRun(folder, (Finished(results[0], own),))
    if command == "attack":
        return FinishedRun(folder, _several_attacks(folder, results))
    *fewer, most = sorted(results, key=lambda result: result.n_samples)
    why = f"because {PER_IMAGE} holds the answers of N = {most.n_samples} only"
    left_out = [f"N = {result.n_samples}, {why}" for result in fewer]
    return FinishedRun(folder, (Finished(most, own),), tuple(left_out))


def read_answers(finished: Finished) -> Answers:
    """Read which images were right, under all attacks where there are several tables.

    Raises:
        RequestError: A table is not there, is damaged, or is not the result's.
    """
    result, tables = finished.result, finished.tables
    first, *others = [_read_table(table, result) for table in tables]
    given = dict(first.given)
    for other in others:
        for kind, answers in given.items():
            given[kind] = np.where(answers == first.label, other.given[kind], answers)
    whole = replace(first, given=given)
    for kind, matrix in whole.right.items():
        mean = result.accuracy[kind].mean
        if not math.isclose(matrix.mean(), mean, abs_tol=1e-9):
            raise RequestError(
                f"{tables[0]} says {kind} accuracy {matrix.mean():.6g}, but {RESULTS} {mean:.6g}: "
                "they are not of the same run; run it again"
            )
    return whole


def unconfirmed(result: Result, folder: Path) -> str:
    """Return why a result is not what its per-image tables say; empty where it is, or has none.

    A gate would else believe whatever stands in a file that is easily edited, or of another run.

    Args:
        result: One of the folder's.
        folder: Of the run.
    """
    if result.command not in ("attack", "eval"):
        return ""
    try:
        own = [one for one in read_run(folder).parts if one.result == result]
        if not own:
            return f"{folder} has no answers per image for it"
        right = read_answers(own[0]).right
    except RequestError as error:
        return str(error)
    for kind, matrix in right.items():
        counted = accuracy([float(one.mean()) for one in matrix], result.data.n)
        counted = counted if result.data.order is None else anytime(counted)
        said = result.accuracy[kind]
        for name in ("mean", "lower_bound", "upper_bound"):
            if not math.isclose(getattr(said, name), getattr(counted, name), abs_tol=1e-9):
                return f"{folder / RESULTS} and {PER_IMAGE} differ in {kind} {name}; run it again"
    return ""


def _several_attacks(folder: Path, results: Sequence[Result]) -> tuple[Finished, ...]:
    """Find the table of each attack, which has a folder of its own below the run's.

    Raises:
        RequestError: One is missing.
    """
    homes = []
    for file in sorted(folder.glob(f"*/{RESULTS}")):
        with contextlib.suppress(RequestError):  # what is none of a run is no part of this one
            homes.append((read_results(file)[0], file.parent))
    alone = [replace(one, gate=None) for one in results]  # the whole run's, not an attack's
    tables = [tuple(home / PER_IMAGE for found, home in homes if found == one) for one in alone]
    parts = []
    for result, own in zip(results, tables, strict=True):
        assert result.attack is not None
        if result.attack.of:  # the worst case over all the others
            parts.append(Finished(result, tuple(one[0] for one in tables if one)))
        elif own:
            parts.append(Finished(result, own[:1]))
        else:
            raise RequestError(
                f"no folder below {folder} holds the run of {attack_label(result)}; name the whole "
                "folder that attack wrote"
            )
    return tuple(parts)


def _read_table(file: Path, result: Result) -> Answers:
    """Read a per-image table.

    Raises:
        RequestError: It is not there, is damaged, or is not of the result's images and repeats.
    """
    kinds = [kind for kind in KINDS if kind in result.accuracy]
    columns, texts = _read_columns(file, ["repeat", "index", "label", *kinds])
    order = np.lexsort((columns["index"], columns["repeat"]))
    shape = result.repeats, result.data.n
    if len(order) != shape[0] * shape[1]:
        raise RequestError(
            f"{file} has {len(order)} rows, not {shape[0]} repeats of {shape[1]} images as "
            f"{RESULTS} says; run it again"
        )
    table = {name: column[order].reshape(shape) for name, column in columns.items()}
    index, label = table["index"], table["label"]
    if (index != index[0]).any() or (label != label[0]).any() or (np.diff(index[0]) <= 0).any():
        raise RequestError(f"{file} does not hold every image once per repeat; run it again")
    paths = None if texts is None else tuple(texts[row] for row in order[: shape[1]])
    return Answers(index[0], label[0], {kind: table[kind] for kind in kinds}, paths)


def _read_columns(
    file: Path, names: Sequence[str]
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...] | None]:
    """Read columns of whole numbers from a table with a header; and that of paths, if there is one.

    Raises:
        RequestError: The file is not there, or lacks them.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            header, *rows = csv.reader(lines)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        numbers = {name: np.array(columns[name], dtype=np.int64) for name in names}
        return numbers, columns.get(PATH)
    except FileNotFoundError as error:
        raise RequestError(
            f"there is no {file}, which says image by image what was right; name the folder that "
            "attack or eval wrote with `out`"
        ) from error
    except (OSError, OverflowError, ValueError, KeyError, csv.Error) as error:
        raise RequestError(f"{file} is damaged ({reason(error)}); run it again") from error
