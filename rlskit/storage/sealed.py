"""Tensors in a safetensors file with a seal: a sha256 over all that the file holds and claims.

The metadata hold one JSON object, `rlskit`, and the `seal` over it and over the tensors' names,
types, shapes and bytes. It tells a file that was damaged or edited from one as it was written; it
is no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlskit.errors import RequestError, reason
from rlskit.storage.files import Pieces, fingerprint, parse_json, write_tensors


def write_sealed(
    path: Path, tensors: Mapping[str, Tensor | Pieces], about: Mapping[str, Any]
) -> None:
    """Write tensors and what they claim to be, replacing the file if it is there.

    Args:
        path: The file.
        tensors: By name.
        about: JSON values, with the file's `format`.
    """
    text = json.dumps(about)
    write_tensors(path, tensors, {"rlskit": text, "seal": _seal(text, tensors)}, force=True)


def read_sealed(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file claims, and its tensors.

    Args:
        path: A file that is there.
        kind: The `format` that it must have.

    Raises:
        RequestError: It is damaged, of another format, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            about = parse_json(found.get("rlskit", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} is not a readable safetensors file ({reason(error)})"
        ) from error
    if not isinstance(about, dict) or about.get("format") != kind:
        raise RequestError(f"{path} is not of the format {kind}")
    if found.get("seal") != _seal(found["rlskit"], tensors):
        raise RequestError(f"{path} is damaged, or was changed: its checksum is of something else")
    return about, tensors


def _seal(text: str, tensors: Mapping[str, Tensor | Pieces]) -> str:
    return hashlib.sha256(f"{text}|{fingerprint(tensors)}".encode()).hexdigest()
