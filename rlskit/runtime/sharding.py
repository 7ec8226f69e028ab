"""Which part of the work is this process's, where several share it and none speaks to another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rlskit.errors import RequestError

AUTO = "auto"

_SET_BY = (
    ("torchrun", "RANK", "WORLD_SIZE", None),
    ("Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)
"""Who starts many processes, and the variables with a process's number, their count and the first
number."""


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a run: every `count`-th unit of its work.

    Attributes:
        index: From 0.
        count: How many parts there are.
    """

    index: int
    count: int

    @classmethod
    def read(cls, text: str, environ: Mapping[str, str] | None = None) -> Shard:
        """Read `0/3`, or what torchrun or a Slurm array says of this process, `auto`.

        Args:
            text: Either.
            environ: The process's own by default.

        Raises:
            RequestError: It is neither, or nobody says.
        """
        if text == AUTO:
            return cls._given(os.environ if environ is None else environ)
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None:
            raise RequestError(
                f"`shard` is this process's part of all, such as 0/3, or {AUTO}, not {text!r}"
            )
        return cls(int(found[1]), int(found[2])).checked(text)

    @classmethod
    def _given(cls, environ: Mapping[str, str]) -> Shard:
        for _, number, count, first in _SET_BY:
            if number in environ and count in environ:
                start = environ.get(first, "0") if first else "0"
                try:
                    shard = cls(int(environ[number]) - int(start), int(environ[count]))
                except ValueError as error:
                    raise RequestError(
                        f"`shard` {AUTO}: {number} and {count} are no numbers"
                    ) from error
                return shard.checked(f"{number}={environ[number]} of {count}={environ[count]}")
        names = " or ".join(f"{number} and {count} ({who})" for who, number, count, _ in _SET_BY)
        raise RequestError(
            f"`shard` {AUTO} needs {names}, and none are set; say which part this is, as 0/3"
        )

    def checked(self, said: str) -> Shard:
        """Return the shard, which must be one of its count.

        Raises:
            RequestError: It is not.
        """
        if not 0 <= self.index < self.count:
            raise RequestError(
                f"`shard` {said} is no part of {self.count}: they are counted from 0, as "
                f"0/{max(self.count, 1)} to {max(self.count, 1) - 1}/{max(self.count, 1)}"
            )
        return self

    def takes(self, unit: int) -> bool:
        """Whether a unit of the work, counted from 0, is this shard's."""
        return unit % self.count == self.index

    def part(self, n: int) -> slice:
        """Return which of n things are this shard's, where each takes a run of them.

        Where there are not two for each, all are every shard's.
        """
        if n < 2 * self.count:
            return slice(0, n)
        return slice(self.index * n // self.count, (self.index + 1) * n // self.count)

    def __str__(self) -> str:
        """As it is given."""
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.index}-of-{self.count}"


WHOLE = Shard(0, 1)
"""All of the work."""
