"""The blocks that the shards of a run left in one folder or in several, each checked and once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rlskit.documents import from_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.results.journal import BLOCK, PARTS, digest, others, request_of
from rlskit.results.shard_notes import ShardNote, read_notes
from rlskit.storage.sealed import read_sealed

T = TypeVar("T")

Block = dict[str, Tensor]

_OF_THE_PLACE = ("path", "hints")
"""What may differ between machines: where a checkpoint lies, and advice that names it."""


@dataclass(frozen=True)
class Left:
    """A block that is as its shard left it.

    Attributes:
        file: Where it is; all blocks of a run may not fit memory.
        index: Its images, `[B]`.
    """

    file: Path
    index: Tensor

    def read(self) -> Block:
        """Return its columns."""
        return read_sealed(self.file, BLOCK)[1]


@dataclass(frozen=True)
class Gathered(Generic[T]):
    """What the shards of one run have left.

    Attributes:
        request: What was asked for.
        basis: What the end of the run needs beside the blocks.
        blocks: (repeat, first image) -> the block.
        images: First image of a block -> the digest of its images.
    """

    request: dict[str, Any]
    basis: T
    blocks: dict[tuple[int, int], Left]
    images: dict[int, str]


def part_names(folders: Sequence[Path]) -> list[str]:
    """Return the subfolders of a run's several attacks, in their order; none of a single one.

    Raises:
        RequestError: A folder holds no run, or they hold different ones.
    """
    requests = [_request(folder) for folder in folders]
    for folder in folders[1:]:
        if other := others(folder, requests[0]):
            hint = "; give all shards the same OMP_NUM_THREADS" if "threads" in other else ""
            raise RequestError(
                f"{folders[0]} and {folder} are not of one run: {', '.join(other)} differ{hint}"
            )
    found = requests[0].get(PARTS)
    parts = found if isinstance(found, dict) else {}
    for folder in folders:
        there = {one.name for one in folder.iterdir() if one.is_dir() and not one.is_symlink()}
        for name in parts:
            if name not in there or digest(request_of(folder / name)) != parts[name]:
                raise RequestError(f"{folder} lacks the attack {name}: no shard got to it yet")
    return list(parts)


def gather(folders: Sequence[Path], kind: type[T]) -> Gathered[T]:
    """Return the blocks of all folders, for which the notes of finished shards vouch.

    Args:
        folders: Of one run.
        kind: What the notes hold as the basis.

    Raises:
        RequestError: They are of different runs or images, or a note is damaged or missing.
        UntrustedError: Two shards say otherwise of the same images, or of the run.
    """
    part_names(folders)
    notes = [(folder, note) for folder in folders for note in read_notes(folder)]
    if not notes:
        raise RequestError(
            f"no shard of the run in {folders[0]} is done yet, so there is no result"
        )
    first = notes[0]
    for folder, note in notes[1:]:
        if _comparable(note.basis) != _comparable(first[1].basis):
            raise UntrustedError(
                f"shard {note.index}/{note.count} in {folder} notes another end of the run than "
                f"shard {first[1].index}/{first[1].count} in {first[0]}: was one given another "
                "`expect_clean`, or is it of another machine?"
            )
    try:
        basis = from_json(first[1].basis, kind)
    except ValueError as error:
        raise RequestError(f"{first[0]}: what its shards note is damaged ({error})") from error
    request = _request(folders[0])
    blocks: dict[tuple[int, int], Left] = {}
    images: dict[int, str] = {}
    for folder, note in notes:
        for key, file, block in _blocks(folder, note, digest(request)):
            if key in blocks:
                _require_same(blocks[key].read(), block, folder, key)
            blocks[key] = Left(file, block.get("index", torch.empty(0)))
            sha = note.blocks[f"{key[0]}-{key[1]}"]
            if images.setdefault(key[1], sha) != sha:
                raise UntrustedError(f"{folder} holds a block of other images than its fellows")
    return Gathered(request, basis, blocks, images)


def require_all(
    gathered: Gathered[Any], sizes: Mapping[tuple[int, int], int], folders: Sequence[Path]
) -> None:
    """Require every block of a run, once and whole.

    Args:
        gathered: What there is.
        sizes: (repeat, first image) of each that must be there -> its images.
        folders: Where the blocks come from.

    Raises:
        RequestError: One is not there, or there are others.
    """
    there = {key: len(block.index) for key, block in gathered.blocks.items()}
    missing = [key for key in sizes if key not in there]
    if missing:
        raise RequestError(
            f"{len(missing)} of {len(sizes)} blocks are not there, the first of them that of "
            f"repeat {missing[0][0]} and image {missing[0][1]}; {_absent(folders)}, with the same "
            "command as before"
        )
    if there != dict(sizes) or any(
        not torch.equal(block.index, torch.arange(first, first + sizes[repeat, first]))
        for (repeat, first), block in gathered.blocks.items()
    ):
        raise RequestError("there are blocks of other images than the run's; run its shards again")


def _absent(folders: Sequence[Path]) -> str:
    """Say which shards are not done."""
    notes = [note for folder in folders for note in read_notes(folder)]
    counts = {note.count for note in notes}
    done = {note.index for note in notes}
    if len(counts) > 1:
        return f"shards of {' and '.join(map(str, sorted(counts)))} parts were mixed; run the rest"
    (count,) = counts
    absent = [f"{index}/{count}" for index in range(count) if index not in done]
    if not absent:
        return "all shards say that they are done, so blocks were lost; run them again"
    return f"run `shard` {', '.join(absent[:10])}{' ...' if absent[10:] else ''} to its end"


def _request(folder: Path) -> dict[str, Any]:
    request = request_of(folder)
    if not request:
        raise RequestError(f"{folder} holds no run of rlskit's; name the folders of its shards")
    return request


def _blocks(
    folder: Path, note: ShardNote, wanted: str
) -> Iterator[tuple[tuple[int, int], Path, Block]]:
    """Yield the blocks of a shard that are as it left them; those that are not are missing."""
    for stem, images in note.blocks.items():
        repeat, _, first = stem.partition("-")
        if not (repeat.isdecimal() and first.isdecimal()):
            raise RequestError(f"a note in {folder} is damaged; run its shards again")
        file = folder / "blocks" / f"{int(repeat)}-{int(first)}.safetensors"
        if not file.is_file():
            continue
        about, block = read_sealed(file, BLOCK)
        if about != {
            "format": BLOCK, "request": wanted, "images": images, "repeat": int(repeat),
            "first": int(first),
        }:  # fmt: skip
            raise RequestError(f"{file} is a block of another run, or of other images")
        yield (int(repeat), int(first)), file, block


def _require_same(one: Block, other: Block, folder: Path, key: tuple[int, int]) -> None:
    """Require that a block that is there twice is twice the same but for its time.

    Raises:
        UntrustedError: It is not.
    """
    names = (one.keys() | other.keys()) - {"seconds"}
    same = one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in names)
    if not same:
        raise UntrustedError(
            f"the block of repeat {key[0]} and image {key[1]} in {folder} says otherwise than the "
            "same block of another shard: they ran on machines that round differently, or one was "
            "changed; run all shards again on machines of one kind"
        )


def _comparable(basis: Any) -> Any:
    """Return what the notes of all shards must have in common: not what is of the place."""
    if isinstance(basis, dict):
        return {key: _comparable(one) for key, one in basis.items() if key not in _OF_THE_PLACE}
    return basis
