"""Writing files so that nothing is lost: to a temporary neighbour, synced, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlskit.errors import RequestError
from rlskit.storage.locks import locked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SAFETENSORS_DTYPES = {
    "torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.int16": "I16",
    "torch.int32": "I32", "torch.int64": "I64", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.float32": "F32", "torch.float64": "F64", "torch.complex64": "C64",
    "torch.uint16": "U16", "torch.uint32": "U32", "torch.uint64": "U64",
}  # fmt: skip

_TEMPORARY = re.compile(r"\.rlskit-[0-9a-f]{16}")
_DEEPEST = 100  # levels of a JSON file


def refuse_existing(path: Path, force: bool) -> None:
    """Require that `path` may be written.

    Raises:
        RequestError: It exists and `force` is not given, it is a folder or a device, or its own
            folder does not exist.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is a device or a pipe; name a file to write")
    if path.exists() and not force:
        raise RequestError(f"{path} exists already; `force` replaces it")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent} to write {path.name} in")


@contextlib.contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block succeeds.

    After a failure, and after an interruption, the old file is as it was and nothing is left beside
    it; what a killed process left there goes, too. A symbolic link stays one: what it leads to is
    replaced.

    Raises:
        RequestError: The file exists and `force` is not given.
    """
    refuse_existing(path, force)
    target = Path(os.path.realpath(path))
    _sweep(target.parent)
    temporary, handle = _temporary(target.parent)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _temporary(folder: Path) -> tuple[Path, int]:
    """Make a temporary file that is locked while its writer lives, so that nobody sweeps it."""
    while True:
        path = folder / f".rlskit-{secrets.token_hex(8)}"
        # Unlike a file of tempfile's, which would surprise whoever shares the folder, it heeds
        # umask.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
        with contextlib.suppress(OSError):  # where there are no locks, nobody sweeps
            if not locked(handle) or not path.exists():
                os.close(handle)  # swept before it was locked
                continue
        return path, handle


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed: their locks went with them."""
    with os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError), path.open("r+b") as file:  # others sweep, too
            if locked(file.fileno()):
                path.unlink()


@dataclass(frozen=True)
class Pieces:
    """A tensor that is read in pieces along its first axis, as it may not fit memory.

    Attributes:
        dtype: Of all pieces.
        shape: Of the whole.
        read: Gives the pieces in their order, whenever it is called.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterable[Tensor]]


CHECKSUM = "0" * 64
"""Stands for a sha256 that is not known yet."""


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write UTF-8 text with `replacing`."""
    with replacing(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | Pieces],
    metadata: Mapping[str, str],
    *,
    force: bool,
    checksum: Callable[[], str] | None = None,
) -> None:
    """Write a safetensors file with `replacing`, one tensor after the other.

    Some versions of safetensors' own `save_file` hold a second copy of all tensors meanwhile. The
    format is 8 bytes with the header's length, a JSON header, and the tensors' bytes
    (https://github.com/huggingface/safetensors#format).

    Args:
        path: The file.
        tensors: By name, of any device and memory layout; tied ones are written for each name.
        metadata: Strings for the header.
        force: Replace an existing file.
        checksum: Asked last for what stands in the place of `CHECKSUM` in the metadata, so that it
            may be computed while the tensors are written.

    Raises:
        RequestError: The file exists and `force` is not given, or a tensor is of a type that
            safetensors files do not hold.
    """
    # Wide types first, so that every tensor is aligned in a file that is mapped into memory.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        if str(tensor.dtype) not in _SAFETENSORS_DTYPES:
            raise RequestError(f"{name} is of {tensor.dtype}, which no safetensors file can hold")
        end += math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path, force=force) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for piece in _pieces(tensors[name]):
                file.write(tensor_bytes(piece))
        assert file.tell() == 8 + len(encoded) + end
        if checksum is not None:
            file.flush()
            os.fsync(file.fileno())  # the disk is busy while the checksum is made
            file.seek(8)
            file.write(encoded.replace(CHECKSUM.encode(), checksum().encode()))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's values as little-endian bytes in row-major order, uncopied if possible."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _pieces(tensor: Tensor | Pieces) -> Iterable[Tensor]:
    return tensor.read() if isinstance(tensor, Pieces) else (tensor,)


def fingerprint(tensors: Mapping[str, Tensor | Pieces]) -> str:
    """Return the sha256 over (name, dtype, shape, bytes) of the tensors, by order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        for piece in _pieces(tensor):
            digest.update(tensor_bytes(piece))
    return digest.hexdigest()


def parse_json(text: str, **options: Any) -> Any:
    """Return what a JSON text from anyone says; options are those of `json.loads`.

    Raises:
        ValueError: It is no JSON, or nests more deeply than anything of rlskit's.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            one
            for above in level
            if isinstance(above, dict | list)
            for one in (above.values() if isinstance(above, dict) else above)
        ]
    if level:
        raise ValueError("it nests too deeply")
    return value


def _sync(path: Path) -> None:
    """Have what was written to a file, or renamed in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
