"""The finished checks of an audit, in a file, so that who interrupts it loses the one it is at.

The file says of what audit they are, and has a checksum; one that is damaged, or of another audit,
is replaced. Each shard of an audit has a file of its own beside it, `FILE.0-of-3`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlskit.audit.audit_result import Check
from rlskit.documents import from_json, to_json
from rlskit.errors import RequestError
from rlskit.results.reading import read_json
from rlskit.runtime.sharding import Shard
from rlskit.storage.files import write_text

FORMAT = "rlskit.checks/1"

_LOG = logging.getLogger("rlskit")


class FinishedChecks:
    """What is kept of an audit while it runs; without a file, nothing.

    Args:
        file: Where.
        request: All that decides what the checks find, as JSON values.
        others: Files of shards, whose checks count, too.
    """

    def __init__(
        self, file: Path | None, request: Mapping[str, Any], others: Sequence[Path] = ()
    ) -> None:
        self.file = file
        self._request = _sha256(to_json(request))
        self._checks: dict[str, Check] = {}
        for one in (*others, file):
            if one is None or not one.exists():
                continue
            try:
                self._take_over(one)
            except (RequestError, ValueError, TypeError, KeyError):
                _LOG.warning("%s is damaged, or of another audit: it does not count", one)

    def get(self, name: str) -> Check | None:
        """Return a check that is finished."""
        return self._checks.get(name)

    def put(self, check: Check) -> None:
        """Keep a finished check."""
        self._checks[check.name] = check
        if self.file is not None:
            found = {"request": self._request, "checks": to_json(list(self._checks.values()))}
            document = {"format": FORMAT, **found, "sha256": _sha256(found)}
            write_text(self.file, json.dumps(document) + "\n", force=True)

    def _take_over(self, file: Path) -> None:
        document = read_json(file)
        found = {name: document[name] for name in ("request", "checks")}
        if (document["format"], document["sha256"]) != (FORMAT, _sha256(found)):
            raise ValueError("it was changed")
        if found["request"] != self._request:
            raise ValueError("it is of another audit")
        self._checks |= {one["name"]: from_json(one, Check) for one in found["checks"]}


def of_shard(file: Path, shard: Shard) -> Path:
    """Return the file of a shard, beside that of the whole audit."""
    return file.with_name(f"{file.name}.{shard.name}")


def of_shards(file: Path) -> list[Path]:
    """Return the files that shards left beside that of the whole audit."""
    pattern = re.compile(re.escape(file.name) + r"\.\d+-of-\d+")
    return sorted(one for one in file.parent.glob("*-of-*") if pattern.fullmatch(one.name))


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
