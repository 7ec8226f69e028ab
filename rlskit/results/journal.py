"""A run's folder: each finished block is written at once, so that nothing finished is lost.

run/
├── run.json                 what was asked for; another request is refused here
├── blocks/0-1000.safetensors   repeat 0, the block whose first image is 1000
├── per_image.csv
├── adversarial.safetensors  when asked for
├── shards/0-of-3.json       of a run in parts: this one is done, and what the end of the run needs
├── SHA256SUMS               of it and of the two files beside, see `rlskit.storage.sums`
├── results.json             written last
└── pgd-0.1/, fgsm-0.1/      where there are several attacks: the run of each, and no blocks above

Who else writes there is kept out by `rlskit.storage.locks`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlskit.errors import RequestError, RunError
from rlskit.results.result import SCHEMA
from rlskit.storage.files import parse_json, replacing, write_text
from rlskit.storage.locks import make_folder, only_writer
from rlskit.storage.sealed import read_sealed, write_sealed
from rlskit.storage.sums import SUMS, write_sums

MANIFEST = "run.json"
RESULTS = "results.json"
PER_IMAGE = "per_image.csv"
ADVERSARIAL = "adversarial.safetensors"
SHARDS = "shards"
PROOF = (ADVERSARIAL, PER_IMAGE, RESULTS)
"""What a run that kept its images can be verified by; its SHA256SUMS are of these."""

FORMAT = "rlskit.run/1"
BLOCK = "rlskit.block/1"
PARTS = "parts"
"""The field of a `run.json` that names the subfolders of several attacks, each with the digest of
its request."""

_LOG = logging.getLogger("rlskit")


def refuse_finished(folder: Path, *, force: bool, gated: bool = False) -> None:
    """Require that a folder may become a run's.

    Args:
        folder: The folder.
        force: Whether a finished run may be replaced.
        gated: Whether a gate is to decide, so that a run on which none did is not finished yet: who
            was killed just before gets the verdict by the same command.

    Raises:
        RequestError: It is a file, holds files of someone else's under the names of a run's, or,
            where `force` is not given, a finished run.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, not the folder of a run; name another `out`")
    _refuse_foreign(folder)
    if (folder / RESULTS).exists() and not force and not (gated and _lacks_gate(folder)):
        raise RequestError(f"{folder} holds a finished run; name another `out`, or use `force`")


def _lacks_gate(folder: Path) -> bool:
    """Whether a folder holds results on none of which a gate decided."""
    found = _read(folder / RESULTS)
    several = found if isinstance(found, list) else [found]
    return _is_results(found) and all(
        isinstance(one, dict) and one.get("gate") is None for one in several
    )


def digest(request: Mapping[str, Any]) -> str:
    """Return the sha256 that stands for a request but for its images: each block has its own."""
    data = request.get("data")
    if isinstance(data, Mapping):
        named = {key: value for key, value in data.items() if key not in ("n", "sha256")}
        request = {**request, "data": named}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def claim(
    folder: Path,
    request: Mapping[str, Any],
    *,
    force: bool,
    lasting: Callable[[], bool] = lambda: False,
    below: bool = False,
) -> None:
    """Make a folder that of a request; with `force`, by removing a run that it holds.

    An unfinished run of the same request is gone on with, also with `force`: what was interrupted
    is not lost.

    Args:
        folder: The folder.
        request: What decides the numbers, as JSON values.
        force: Whether a finished run, or another one, may be removed.
        lasting: Whether what the folder holds of the same request on other images is of use.
        below: Whether the folder is that of one of several attacks, so that a finished run in it
            is a part of an unfinished one.

    Raises:
        RequestError: It holds another run, and `force` is not given; or files of someone else's.
    """
    _refuse_foreign(folder)
    finished = (folder / RESULTS).exists() and not below
    if force and (finished or _is_other(folder, request)):
        clear(folder)
    elif other := others(folder, request):
        grown = other == ["data"] and digest(request_of(folder)) == digest(request)
        if finished or not grown or not lasting():
            raise RequestError(
                f"{folder} holds another run ({', '.join(other)} differ); name another `out`, or "
                "use `force` to replace it"
            )
        if not _is_shuffled(request):  # of which more may be wanted
            _LOG.warning(
                "%s: the data has changed; blocks whose images are the same are kept", folder
            )
        (folder / RESULTS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps({"format": FORMAT, **request}, indent=2) + "\n"  # attacks in order
    write_text(folder / MANIFEST, manifest, force=True)


def _is_shuffled(request: Mapping[str, Any]) -> bool:
    data = request.get("data")
    return isinstance(data, Mapping) and data.get("order") is not None


class Journal:
    """The finished blocks of one run, on disk if it has a folder.

    Of those on disk, memory holds the numbers (some 100 bytes per image and attack, of which every
    end of a run needs all), and of none the images.

    Attributes:
        rows: Images in all blocks of all repeats.

    Args:
        folder: The run's folder; None keeps the blocks in memory only. The blocks of an earlier run
            of the same request are taken over.
        request: Everything that decides the numbers, as JSON values.
        force: Whether a finished run, or another one, may be removed; see `claim`.
        below: See `claim`.
        images: The first image of a block -> a digest of its images and labels, so that blocks
            whose images stayed count where others of the data went.

    Raises:
        RequestError: The folder holds another run, and `force` is not given; or files of someone
            else's.
    """

    def __init__(
        self,
        folder: Path | None,
        request: Mapping[str, Any],
        *,
        force: bool = False,
        below: bool = False,
        images: Callable[[int], str] = lambda first: "",  # noqa: ARG005
    ) -> None:
        self.folder, self._digest, self._images = folder, digest(request), images
        self._blocks: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.rows = 0
        if folder is None:
            return
        claim(folder, request, force=force, lasting=self._lasting, below=below)
        (folder / "blocks").mkdir(exist_ok=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the first block."""
        return tuple(self._blocks[min(self._blocks)])

    @property
    def images_of(self) -> dict[str, str]:
        """The digest of the images of every block that is there, by the stem of its file."""
        return {f"{repeat}-{first}": self._images(first) for repeat, first in sorted(self._blocks)}

    def get(self, repeat: int, first: int) -> dict[str, Tensor] | None:
        """Return the block that starts at image `first`, if it is finished, whole and this run's.

        It is given without its images, for which see `pieces`. Any other block is computed again,
        never counted.
        """
        if self.folder is not None and (repeat, first) not in self._blocks:
            file = self._file(repeat, first)
            if not file.exists():
                return None
            try:
                self._keep(repeat, first, self._read(repeat, first))
            except RequestError as error:
                _LOG.warning("%s; it is computed again", error)
        return self._blocks.get((repeat, first))

    def put(self, repeat: int, first: int, block: dict[str, Tensor]) -> None:
        """Note a finished block; on disk it is whole or not there.

        Raises:
            RunError: The run's folder is gone.
        """
        block = {name: tensor.detach().cpu().contiguous() for name, tensor in block.items()}
        if self.folder is not None:
            if not (self.folder / "blocks").is_dir():
                raise RunError(
                    f"{self.folder} was removed while its run was at work, with what was finished; "
                    "run the same command again"
                )
            write_sealed(self._file(repeat, first), block, self._about(repeat, first))
        self._keep(repeat, first, block)

    def _keep(self, repeat: int, first: int, block: dict[str, Tensor]) -> None:
        """Hold a block in memory; its images only where they are nowhere else."""
        if self.folder is not None:
            block = {name: one for name, one in block.items() if one.ndim < 4}
        self.rows += len(block["index"]) if (repeat, first) not in self._blocks else 0
        self._blocks[repeat, first] = block

    def _read(self, repeat: int, first: int) -> dict[str, Tensor]:
        """Read a block.

        Raises:
            RequestError: It is damaged, or of another request, of other images or of another place.
        """
        file = self._file(repeat, first)
        about, block = read_sealed(file, BLOCK)
        if about != self._about(repeat, first):
            raise RequestError(f"{file} is a block of another run, or of other images")
        return block

    def _lasting(self) -> bool:
        """Whether some of the blocks in the folder count, or there are none to lose."""
        assert self.folder is not None
        files = _blocks(self.folder)
        for file in files:
            repeat, first = map(int, file.stem.split("-"))
            with contextlib.suppress(RequestError):
                self._read(repeat, first)
                return True
        return not files

    def _about(self, repeat: int, first: int) -> dict[str, Any]:
        """Return what a block says of itself."""
        return {
            "format": BLOCK, "request": self._digest, "images": self._images(first),
            "repeat": repeat, "first": first,
        }  # fmt: skip

    def column(self, name: str, repeat: int) -> Tensor:
        """Return one column of a repeat over all images, in the order of the blocks."""
        return torch.cat(list(self.pieces(name, repeat)))

    def pieces(self, name: str, repeat: int) -> Iterator[Tensor]:
        """Yield a column of a repeat block by block, as together they may not fit memory.

        Raises:
            RequestError: A block is no longer there, or was changed.
        """
        for key in sorted(key for key in self._blocks if key[0] == repeat):
            held = self._blocks[key]
            yield held[name] if name in held else self._read(*key)[name]

    def total(self, name: str) -> float:
        """Return the sum of a column over all blocks and repeats."""
        return sum(float(block[name].sum()) for block in self._blocks.values())

    def write_per_image(self, columns: Mapping[str, Iterable[Any]]) -> str | None:
        """Write the per-image table; return its file name, or None without a folder."""
        if self.folder is None:
            return None
        with (
            replacing(self.folder / PER_IMAGE, force=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return PER_IMAGE

    def write_results(self, text: str) -> Path | None:
        """Write `results.json`, the sign that the run is finished; return its path."""
        if self.folder is None:
            return None
        write_results(self.folder, text)
        return self.folder / RESULTS

    def _file(self, repeat: int, first: int) -> Path:
        assert self.folder is not None
        return self.folder / "blocks" / f"{repeat}-{first}.safetensors"


def write_results(folder: Path, text: str) -> None:
    """Write the digests of a run that kept its images, and last, as it ends it, `results.json`."""
    if (folder / ADVERSARIAL).is_file():
        write_sums(folder, PROOF, {RESULTS: text.encode("utf-8", "backslashreplace")})
    write_text(folder / RESULTS, text, force=True)


def clear(folder: Path) -> None:
    """Remove a run, and those of its several attacks below; all other files and runs stay.

    What says that it is finished goes after all blocks: who is killed here has left none that
    another process takes for its own.

    Raises:
        RunError: Somebody writes in one of those below.
    """
    parts = list(_parts(folder))
    with only_writer(*parts):
        for part in parts:
            _clear_own(part)
        _clear_own(folder)
    for part in parts:
        with contextlib.suppress(OSError):  # it holds something else, too
            part.rmdir()


def _clear_own(folder: Path) -> None:
    """Remove the files of the run in a folder; what says whose they are goes last."""
    for file in (*_blocks(folder), *shard_files(folder)):
        file.unlink()
    for name in ("blocks", SHARDS):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()
    for name in (RESULTS, SUMS, PER_IMAGE, ADVERSARIAL, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def shard_files(folder: Path) -> list[Path]:
    """Return the files that are named as what shards note when they are done."""
    files = (folder / SHARDS).glob("*.json")
    return [file for file in files if re.fullmatch(r"\d+-of-\d+", file.stem)]


def _blocks(folder: Path) -> list[Path]:
    """Return the files that are named as blocks."""
    files = (folder / "blocks").glob("*.safetensors")
    return [file for file in files if re.fullmatch(r"\d+-\d+", file.stem)]


def _parts(folder: Path) -> Iterator[Path]:
    """Yield the subfolders with the runs of a folder's several attacks, as what is in both says.

    Those are subfolders whose request is the one that the folder's `run.json` names, or whose
    result is in the list of its `results.json`. A link leads elsewhere, and is nobody's part.
    """
    manifest, results = _read(folder / MANIFEST), _read(folder / RESULTS)
    named = manifest.get(PARTS) if isinstance(manifest, dict) else None
    requests = list(named.values()) if isinstance(named, dict) else []
    for file in folder.glob(f"*/{MANIFEST}"):
        request = _read(file)
        if file.parent.is_symlink() or not _is_request(request):
            continue
        result = _read(file.parent / RESULTS)
        if digest(_request(request)) in requests or (
            isinstance(results, list) and result in results
        ):
            yield file.parent


def _read(file: Path) -> Any:
    """Return what a JSON file holds; None for what cannot be read."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def request_of(folder: Path) -> dict[str, Any]:
    """Return the request of the run that a folder holds; nothing where it does not say."""
    manifest = _read(folder / MANIFEST)
    return _request(manifest) if _is_request(manifest) else {}


def _request(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the request that a `run.json` holds."""
    return {key: value for key, value in manifest.items() if key != "format"}


def _is_request(found: Any) -> bool:
    """Whether a JSON value is a `run.json`; older ones are known by the versions in them."""
    if not isinstance(found, dict):
        return False
    versions = found.get("versions")
    return found.get("format") == FORMAT or (isinstance(versions, dict) and "rlskit" in versions)


def _is_results(found: Any) -> bool:
    """Whether a JSON value is a `results.json`."""
    first = found[0] if isinstance(found, list) and found else found
    return isinstance(first, dict) and first.get("schema") == SCHEMA


def _is_block(file: Path) -> bool:
    """Whether a file is a block, be it damaged or not."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return BLOCK.encode() in opened.read(100_000)


def _refuse_foreign(folder: Path) -> None:
    """Require that what a run would replace in a folder is a run's.

    Raises:
        RequestError: It is not, and stays.
    """
    for place in (folder / "blocks", folder / SHARDS):
        if place.exists() and not place.is_dir():
            raise RequestError(f"{place} is a file, where a run has a folder; name another `out`")
    if _is_request(_read(folder / MANIFEST)):
        return
    ours = _is_results(_read(folder / RESULTS))
    names = [MANIFEST] if ours else [MANIFEST, RESULTS, PER_IMAGE, ADVERSARIAL, SUMS]
    foreign = [folder / name for name in names if (folder / name).exists()]
    foreign += [file for file in _blocks(folder) if not _is_block(file)]
    if foreign:
        raise RequestError(
            f"{foreign[0]} is no file of a run of rlskit's, and not replaced; name another `out`"
        )


def _is_other(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether a folder holds another run, or blocks of nobody knows what."""
    try:
        return bool(others(folder, request))
    except RequestError:
        return True


def others(folder: Path, request: Mapping[str, Any]) -> list[str]:
    """Return the fields in which the request of the run that a folder holds is another.

    Raises:
        RequestError: It holds blocks, but does not say whose.
    """
    if not (folder / MANIFEST).exists():
        if _blocks(folder):
            raise RequestError(
                f"{folder} holds blocks but no {MANIFEST} that says whose; name another `out`, or "
                "use `force` to replace them"
            )
        return []
    known = request_of(folder)
    wanted = json.loads(json.dumps(request))  # with lists for tuples, as it is read
    return sorted(key for key in known.keys() | wanted if known.get(key) != wanted.get(key))


def free_folder(parent: Path, name: str) -> Path:
    """Make the first `parent/name-NNN` that is not there yet, and return it."""
    make_folder(parent)
    number = 1
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # also where another run was faster
            number += 1
        else:
            return folder
