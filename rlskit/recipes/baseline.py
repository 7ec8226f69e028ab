"""A baseline: an earlier run of a recipe, as its folder or as one small file for a repository.

The file is a zip of `ROW/COLUMN/results.json` and the per-image tables beside them.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlskit.errors import RequestError, reason
from rlskit.results import RESULTS, read_results
from rlskit.results.journal import PER_IMAGE
from rlskit.results.reading import read_json
from rlskit.storage.files import replacing

_LARGEST = 2**28
"""Bytes that a baseline unpacks to at most; 10,000 images take some hundred thousand per cell."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""So that the same run gives the same bytes."""


def export_baseline(run: str | Path, out: str | Path, *, force: bool = False) -> int:
    """Write the results and per-image tables of a recipe's run into one file; return the cells.

    Args:
        run: The folder of `rlskit run`.
        out: The file to write.
        force: Replace it if it is there.

    Raises:
        RequestError: The folder holds no finished run, no cell that was measured image by image,
            or cells of one row that were measured on different models; or the file is there, and
            `force` is not given.
    """
    folder = Path(run)
    own = _measured(folder)
    found = [*folder.glob(f"*/*/{PER_IMAGE}"), *folder.glob(f"*/*/*/{PER_IMAGE}")]
    tables = [table for table in found if table.relative_to(folder).parts[:2] in own]
    files = {file for table in tables for file in (table, table.with_name(RESULTS))}
    files |= {table.parent.parent / RESULTS for table in tables}  # of several attacks
    files = {file for file in files if file.is_file() and file.parent != folder}
    cells = {file.relative_to(folder).parts[:2] for file in files}
    if not cells:
        raise RequestError(
            f"{folder} holds no run of a recipe with cells of attack or eval; name the folder that "
            "`rlskit run` wrote"
        )
    _require_one_model(folder, cells)
    with replacing(Path(out), force=force) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for file in sorted(files):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            packed.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return len(cells)


def _measured(folder: Path) -> set[tuple[str, ...]]:
    """Return row and column of each cell that a run measured, as its results say.

    What lies beside them is of an earlier recipe, or of stages that are not finished.

    Raises:
        RequestError: They are not there, or are none of a run of a recipe.
    """
    none = f"{folder} holds no finished run of a recipe; name the folder that `rlskit run` wrote"
    if not (folder / RESULTS).is_file():
        raise RequestError(none)
    document = read_json(folder / RESULTS)
    try:
        return {
            (str(row["name"]), str(cell["column"]))
            for row in document["rows"]
            for cell in row["cells"]
            if cell["result"] is not None
        }
    except (KeyError, TypeError) as error:
        raise RequestError(none) from error


@contextmanager
def baseline_folder(path: Path | None) -> Iterator[Path | None]:
    """Give a baseline as a folder with its cells; a file is unpacked for as long as it is used.

    Args:
        path: A run's folder, its `results.json`, or a file of `export_baseline`.

    Raises:
        RequestError: It is nothing of these.
    """
    if path is None or path.is_dir():
        yield path
    elif path.name == RESULTS and path.is_file():
        yield path.parent
    else:
        with tempfile.TemporaryDirectory() as place:
            _unpack(path, Path(place))
            yield Path(place)


def cell_of(folder: Path, row: str, column: str) -> Path:
    """Return the folder of a cell in a baseline, whose only row may have another name.

    Raises:
        RequestError: There is none.
    """
    own = folder / row / column
    if (own / RESULTS).is_file():
        return own
    rows = {file.parent.parent for file in folder.glob(f"*/*/{RESULTS}")}
    others = [row / column for row in rows if (row / column / RESULTS).is_file()]
    if len(rows) == len(others) == 1:
        return others[0]
    raise RequestError(
        f"the baseline has no {row}/{column}; run the same columns for it, or name the row as it "
        "was called there"
    )


def _require_one_model(folder: Path, cells: Iterable[tuple[str, ...]]) -> None:
    """Require that what is left of an earlier run does not stand beside a later one's.

    Raises:
        RequestError: The cells of a row are of different models, or one cannot be read.
    """
    models: dict[str, set[str | None]] = {}
    for row, column in cells:
        found = read_results(folder / row / column / RESULTS)
        models.setdefault(row, set()).add(found[0].checkpoint.sha256)
    for row, digests in models.items():
        if len(digests) > 1:
            raise RequestError(
                f"the cells of {folder / row} were measured on different models, as where a run "
                "did not end; run the recipe again, or remove what is old"
            )


def _unpack(path: Path, place: Path) -> None:
    """Unpack the tables and results of a file that may come from anyone.

    Raises:
        RequestError: It is no such file.
    """
    advice = "[baseline] results is a run's folder or a file that `rlskit baseline` wrote"
    try:
        with zipfile.ZipFile(path) as packed:
            entries = packed.infolist()
            if sum(entry.file_size for entry in entries) > _LARGEST:
                raise RequestError(f"{path} unpacks to more than a baseline can hold; {advice}")
            for entry in entries:
                if Path(entry.filename).name in (RESULTS, PER_IMAGE):
                    packed.extract(entry, place)  # which keeps to the folder
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise RequestError(f"{path} cannot be read ({reason(error)}); {advice}") from error
