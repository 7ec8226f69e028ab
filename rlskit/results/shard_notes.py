"""What the shards of a run note when they are done: which blocks are theirs, and the run's end.

A note stands in the folder of its run, `shards/0-of-3.json`. It vouches for blocks by the digests
of their images, which whoever merges them has not got.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlskit.documents import Count, Whole, from_json, to_json
from rlskit.errors import RequestError, reason
from rlskit.results.journal import SHARDS, Journal, request_of, shard_files
from rlskit.results.reading import read_json
from rlskit.runtime.sharding import Shard
from rlskit.storage.files import write_text

FORMAT = "rlskit.shard/1"


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """What a shard that is done says.

    Attributes:
        index: Of the shard, from 0.
        count: Of all shards.
        request: Digest of all that decides the numbers, with that of all images.
        blocks: Stem of a block's file -> the digest of its images.
        basis: What the end of the run needs beside the blocks, as JSON values.
    """

    index: Whole
    count: Count
    request: str
    blocks: Mapping[str, str]
    basis: Any


def note_shard(journal: Journal, shard: Shard, request: Mapping[str, Any], basis: Any) -> None:
    """Note in a run's folder that a shard did its blocks, which are those of the journal."""
    assert journal.folder is not None
    note = ShardNote(
        index=shard.index, count=shard.count, request=_digest(request), blocks=journal.images_of,
        basis=to_json(basis),
    )  # fmt: skip
    write_note(journal.folder, shard, note)


def write_note(folder: Path, shard: Shard, note: ShardNote) -> None:
    """Write a shard's note."""
    (folder / SHARDS).mkdir(exist_ok=True)
    text = json.dumps({"format": FORMAT, **to_json(note)}, allow_nan=False) + "\n"
    write_text(folder / SHARDS / f"{shard.name}.json", text, force=True)


def read_notes(folder: Path) -> list[ShardNote]:
    """Return the notes of the run that a folder holds; not those of its earlier requests.

    Raises:
        RequestError: One is damaged.
    """
    wanted = _digest(request_of(folder))
    found = []
    for file in sorted(shard_files(folder)):
        document = read_json(file)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RequestError(f"{file} is no note of a shard's; run that shard again")
        try:
            found.append(from_json(document, ShardNote))
        except ValueError as error:
            raise RequestError(
                f"{file} is damaged ({reason(error)}); run that shard again"
            ) from error
    return [note for note in found if note.request == wanted]


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
