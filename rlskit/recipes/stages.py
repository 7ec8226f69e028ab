"""A stage: one command line of rlskit, what it needs, what it writes, and its fingerprint."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import numbers
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlskit import __version__
from rlskit.documents import to_json
from rlskit.errors import RequestError
from rlskit.recipes.time_budget import Budget

MEASURING = ("attack", "eval", "diversity")
"""The commands that fill cells of the table."""

AUDIT = "audit"
"""The command of a stage that looks at a cell's attack, and its place below the cell."""


@dataclass(frozen=True)
class Stage:
    """One command of a recipe; all paths are relative to the folder of the run.

    Attributes:
        name: `ROW/convert`, `ROW/train`, `ROW/COLUMN` or `ROW/COLUMN/audit`.
        command: The subcommand of rlskit.
        options: Its long options without `--`; texts, or True for a flag; `name` is the network of
            `convert`.
        needs: The stage whose checkpoint it takes; None for `convert`, or if that is a file.
        checkpoint: The file of a finished model that it takes instead; relative to the folder that
            `rlskit run` is called in.
        budget: How long a cell may take, and what ends it before; None for as long as it takes.
    """

    name: str
    command: str
    options: Mapping[str, str | bool]
    needs: Stage | None
    checkpoint: str | None = None
    budget: Budget | None = None

    @property
    def output(self) -> Path:
        """The file that is there once the stage is finished."""
        place = Path(self.name).parent
        files = {
            "convert": place / "converted.safetensors",
            "train": place / "rls.safetensors",
            AUDIT: place / "audit.json",
        }
        return files.get(self.command, Path(self.name) / "results.json")

    @property
    def converted(self) -> Stage:
        """The `convert` that its model comes from."""
        return self if self.needs is None else self.needs.converted

    @property
    def origin(self) -> str:
        """What tells its model from others: the `convert` that made it, or a checkpoint's path."""
        return self.converted.name if self.checkpoint is None else self.checkpoint

    @property
    def cell(self) -> Path | None:
        """The folder that it writes; None where it makes a model, or a file beside a cell."""
        return self.output.parent if self.command in MEASURING else None

    @property
    def about(self) -> str:
        """The cell that it measures or audits; of a stage that makes a model, its own name."""
        return self.name.removesuffix(f"/{AUDIT}") if self.command == AUDIT else self.name

    def arguments(self, folder: Path, into: Path | None = None) -> list[str]:
        """Return the command line, without `rlskit`.

        Args:
            folder: Of the run; the model is taken from there.
            into: Written to in its place.
        """
        into = into or folder
        taken = self.taken(folder)
        first = self.options["name"] if taken is None else str(taken)
        assert isinstance(first, str)
        line = [self.command, first]
        for name, value in self.options.items():
            if not (taken is None and name == "name"):
                line += option_words(name, value)
        if self.command == AUDIT:
            return [*line, "--json", str(into / self.output)]
        return [*line, "--out", str(into / (self.cell or self.output))]

    def taken(self, folder: Path) -> Path | None:
        """Return the model that it takes; None for `convert`.

        Args:
            folder: Of the run.
        """
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return None if self.needs is None else folder / self.needs.output

    def fingerprint(self) -> str:
        """Return a digest of all that decides what the stage writes.

        That is the command, its options, the files and folders that they name, rlskit's version,
        and the fingerprint of the stage before; of data sets known by name, the name alone.
        """
        options = not_left_out(self.options)
        about: dict[str, Any] = {
            "command": self.command,
            "options": options,
            "files": {str(file): sha256(file) for file in _files(options)},
            "folders": [listing(name) for name in _elsewhere(options)],
            "version": __version__,
            "needs": None if self.needs is None else self.needs.fingerprint(),
        }
        if self.budget is not None:
            about["budget"] = to_json(self.budget)
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def typed(arguments: Sequence[str]) -> str:
    """Return a command line as it would be typed."""
    return shlex.join(["rlskit", *arguments])


_SWITCHES = ("random-start",)
"""Options that are on unless told otherwise, so that false has a flag of its own."""


def not_left_out(options: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """Return the options but for those that false leaves out."""
    return {
        name: value for name, value in options.items() if value is not False or name in _SWITCHES
    }


def option_words(name: str, value: str | bool) -> list[str]:
    """Return an option as it stands on the command line."""
    if value is False:
        return [f"--no-{name}"] if name in _SWITCHES else []
    if value is True:
        return [f"--{name}"]
    # A value like an option's name must not be taken for one, as behind a flag it would be.
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def option_text(command: str, name: str, value: Any) -> str | bool:
    """Return an option's value as it stands on the command line; flags stay booleans.

    A list becomes `a,b`, a table `a=1,b=2`.

    Raises:
        RequestError: It cannot stand there.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return ",".join(f"{key}={option_text(command, key, one)}" for key, one in value.items())
    if isinstance(value, list):
        return ",".join(str(option_text(command, name, one)) for one in value)
    if isinstance(value, str | numbers.Real):
        return str(value)
    raise RequestError(f"{command}: {name} = {value} is no value for an option")


def _files(options: Mapping[str, str | bool]) -> Iterator[Path]:
    """Yield the files among an option's `FILE`, `FILE.py:factory` and `npz:FILE`."""
    for text in options.values():
        if isinstance(text, str):
            several = text.split(",")  # as in --weights A,B
            named = {text, text.rpartition(":")[0], text.partition(":")[2], *several} - {""}
            files = (Path(name).expanduser() for name in sorted(named))
            yield from (file for file in files if file.is_file())


def _elsewhere(options: Mapping[str, str | bool]) -> Iterator[str]:
    """Yield every `folder:PATH`, `hf:PATH` and `manifest:FILE`, whose contents are other files."""
    for text in options.values():
        if isinstance(text, str) and text.startswith(("folder:", "hf:", "manifest:")):
            yield text


@functools.cache
def listing(name: str) -> str:
    """Return a digest of the names, sizes and times of all files that such a name stands for.

    It is taken once for all stages of a recipe; `recipes.load` forgets it.
    """
    kind, _, path = name.partition(":")
    place = Path(path).expanduser()
    files = _named_by(path) if kind == "manifest" else [*place.rglob("*")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        facts = file.stat()
        line = f"{os.path.relpath(file, place)} {facts.st_size} {facts.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _named_by(manifest: str) -> list[Path]:
    """Return the images that a table names; none where it is no table, as its stage will say."""
    from rlskit.data.manifest import named_files  # which needs torch

    with contextlib.suppress(RequestError):
        return named_files(manifest)
    return []


def sha256(file: Path) -> str:
    """Return the digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
