"""Writing files so that nothing is lost: to a temporary neighbour, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlskit.errors import RequestError


def refuse_existing(path: Path, force: bool) -> None:
    """Require that `path` may be written.

    Raises:
        RequestError: It exists and `force` is not given, or its folder does not exist.
    """
    if path.exists() and not force:
        raise RequestError(f"{path} exists already; --force replaces it")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent} to write {path.name} in")


@contextlib.contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block succeeds.

    After a failure, and after an interruption, the old file is as it was and nothing is left beside
    it.

    Raises:
        RequestError: The file exists and `force` is not given.
    """
    refuse_existing(path, force)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would surprise whoever shares the folder
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write UTF-8 text with `replacing`."""
    with replacing(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
