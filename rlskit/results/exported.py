"""The per-image table of a run as one file elsewhere: CSV, or parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rlskit.errors import RequestError
from rlskit.results.finished import read_run
from rlskit.results.journal import PER_IMAGE
from rlskit.storage.files import refuse_existing, replacing

_PARQUET = ".parquet"


def check_table(to: Path, *, force: bool) -> None:
    """Require a file that a per-image table may be written to.

    Raises:
        RequestError: It exists and `force` is not given, ends otherwise than in `.csv` or
            `.parquet`, or is parquet without pyarrow.
    """
    if to.suffix not in (".csv", _PARQUET):
        raise RequestError(f"`per_image` {to} must end in .csv or {_PARQUET}")
    if to.suffix == _PARQUET and not find_spec("pyarrow"):
        raise RequestError(
            f"pyarrow writes {to}: pip install 'rlskit[parquet]', or name a file that ends in .csv"
        )
    refuse_existing(to, force)


def write_table(run: Path, to: Path, *, force: bool) -> None:
    """Write a line for each image and repeat; of several attacks, with their names in `attack`.

    Args:
        run: Folder of a finished run.
        to: The file (see `check_table`).
        force: Replace it.

    Raises:
        RequestError: The run keeps no answers per image, or the file exists.
    """
    rows = list(_rows(run))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8")
    with replacing(to, force=force) as temporary:
        if to.suffix == _PARQUET:
            from pyarrow import csv as tables
            from pyarrow import parquet

            parquet.write_table(tables.read_csv(io.BytesIO(content)), temporary)
        else:
            temporary.write_bytes(content)


def _rows(run: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of a run's table, or of those of its several attacks."""
    own = run / PER_IMAGE
    parts = () if own.is_file() else read_run(run).parts
    tables = [one.tables[0] for one in parts if one.result.attack and not one.result.attack.of]
    for table in tables or [own]:
        attack = {} if table == own else {"attack": table.parent.name}
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {**attack, **row}
