"""SHA256SUMS: the digests of a folder's files, as `sha256sum -c` reads them.

They tell a folder that was damaged or edited from one as it was written; they are no signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlskit.storage.files import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path, names: Sequence[str], coming: Mapping[str, bytes]) -> None:
    """Write the digests of some of a folder's files, replacing those of before.

    Args:
        folder: The folder.
        names: The files.
        coming: What is to be written next of them.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in coming.items()}
    lines = [f"{digests.get(name) or sha256_of(folder / name)}  {name}\n" for name in names]
    write_text(folder / SUMS, "".join(lines), force=True)


def changed_files(folder: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the files that are not as their digests say; None where a folder has no digests.

    Args:
        folder: The folder.
        names: The files that must be as they were written.
    """
    file = folder / SUMS
    if not file.exists():
        return None
    known = set(file.read_bytes().decode("utf-8", "replace").split("\n"))
    there = [name for name in names if (folder / name).is_file()]
    same = {name for name in there if f"{sha256_of(folder / name)}  {name}" in known}
    changed = tuple(name for name in names if name not in same)
    return changed or ((SUMS,) if len(known) != len({*names, ""}) else ())


def sha256_of(file: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
