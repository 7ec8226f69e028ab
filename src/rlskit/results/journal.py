"""A run's folder: each finished block is written at once, so that nothing finished is lost.

run/
├── run.json                 what was asked for; another request is refused here
├── blocks/0-1000.safetensors   repeat 0, the block whose first image is 1000
├── per_image.csv
├── adversarial.safetensors  when asked for
└── results.json             written last
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlskit.errors import RequestError
from rlskit.files import parse_json, replacing, write_text

MANIFEST = "run.json"
RESULTS = "results.json"
PER_IMAGE = "per_image.csv"
ADVERSARIAL = "adversarial.safetensors"


def refuse_finished(folder: Path, *, force: bool) -> None:
    """Require that a folder holds no finished run, or that `force` is given.

    Raises:
        RequestError: It does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, not the folder of a run; name another --out")
    if (folder / RESULTS).exists() and not force:
        raise RequestError(f"{folder} holds a finished run; name another --out, or use --force")


class Journal:
    """The finished blocks of one run, in memory and, given a folder, on disk.

    Args:
        folder: The run's folder; None keeps the blocks in memory only. The blocks of an earlier run
            of the same request are taken over.
        request: Everything that decides the numbers, as JSON values.
        force: Start afresh, whatever the folder holds.

    Raises:
        RequestError: The folder holds another run, and `force` is not given.
    """

    def __init__(
        self, folder: Path | None, request: Mapping[str, Any], *, force: bool = False
    ) -> None:
        self.folder = folder
        self._blocks: dict[tuple[int, int], dict[str, Tensor]] = {}
        if folder is None:
            return
        if force:
            clear(folder)
        else:
            _refuse_another(folder, request)
        (folder / "blocks").mkdir(parents=True, exist_ok=True)
        wanted = json.dumps(request, indent=2, sort_keys=True) + "\n"
        write_text(folder / MANIFEST, wanted, force=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the first block."""
        return tuple(self._blocks[min(self._blocks)])

    @property
    def rows(self) -> int:
        """Images in all blocks of all repeats."""
        return sum(len(block["index"]) for block in self._blocks.values())

    def get(self, repeat: int, first: int) -> dict[str, Tensor] | None:
        """Return the block that starts at image `first`, if it is finished and readable."""
        if self.folder is not None and (repeat, first) not in self._blocks:
            try:
                self._blocks[repeat, first] = load_file(self._file(repeat, first))
            except (FileNotFoundError, SafetensorError):
                return None  # a torn block is simply not finished
        return self._blocks.get((repeat, first))

    def put(self, repeat: int, first: int, block: dict[str, Tensor]) -> None:
        """Note a finished block; on disk it is whole or not there."""
        block = {name: tensor.detach().cpu().contiguous() for name, tensor in block.items()}
        self._blocks[repeat, first] = block
        if self.folder is not None:
            with replacing(self._file(repeat, first), force=True) as temporary:
                save_file(block, temporary)

    def column(self, name: str, repeat: int) -> Tensor:
        """Return one column of a repeat over all images, in the order of the blocks."""
        keys = sorted(key for key in self._blocks if key[0] == repeat)
        return torch.cat([self._blocks[key][name] for key in keys])

    def total(self, name: str) -> float:
        """Return the sum of a column over all blocks and repeats."""
        return sum(float(block[name].sum()) for block in self._blocks.values())

    def write_per_image(self, columns: Mapping[str, Iterable[Any]]) -> str | None:
        """Write the per-image table; return its file name, or None without a folder."""
        if self.folder is None:
            return None
        with (
            replacing(self.folder / PER_IMAGE, force=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return PER_IMAGE

    def write_results(self, text: str) -> Path | None:
        """Write `results.json`, the sign that the run is finished; return its path."""
        if self.folder is None:
            return None
        write_text(self.folder / RESULTS, text, force=True)
        return self.folder / RESULTS

    def _file(self, repeat: int, first: int) -> Path:
        assert self.folder is not None
        return self.folder / "blocks" / f"{repeat}-{first}.safetensors"


def clear(folder: Path) -> None:
    """Remove a run, and those of several attacks in its subfolders; other files stay."""
    for manifest in folder.glob(f"*/{MANIFEST}"):
        clear(manifest.parent)
    for name in (RESULTS, PER_IMAGE, ADVERSARIAL, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    for block in (folder / "blocks").glob("*.safetensors"):
        block.unlink()


def _refuse_another(folder: Path, request: Mapping[str, Any]) -> None:
    """Require that what blocks a folder holds are of this request."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        if any((folder / "blocks").glob("*.safetensors")):
            raise RequestError(
                f"{folder} holds blocks but no {MANIFEST} that says whose; name another --out, or "
                "use --force to replace them"
            )
        return
    try:
        found = parse_json(manifest.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    wanted = json.loads(json.dumps(request))  # with lists for tuples, as it is read
    if found == wanted:
        return
    known = found if isinstance(found, dict) else {}
    other = sorted(key for key in known.keys() | wanted if known.get(key) != wanted.get(key))
    raise RequestError(
        f"{folder} holds another run ({', '.join(other)} differ); name another --out, or use "
        "--force to replace it"
    )


def free_folder(parent: Path, name: str) -> Path:
    """Return the first `parent/name-NNN` that is not there yet; it is not made."""
    number = 1
    while (folder := parent / f"{name}-{number:03d}").exists():
        number += 1
    return folder
