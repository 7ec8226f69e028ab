"""Shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start

import pytest
import torch

import schemas

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real data and published weights beside the repository; tests that need them skip without."""

# Tiny networks: threads would cost more than they bring, and two processes would fight for cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _documents_are_as_documented() -> Iterator[None]:
    """Hold all JSON of results, audits and comparisons against the schemas in docs/."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in schemas.DOCUMENTS.items():
            check, written = schemas.validator(name).validate, kind.to_json

            def to_json(self: Any, check: Any = check, written: Any = written) -> Any:
                found = written(self)
                check(found)
                return found

            patch.setattr(kind, "to_json", to_json)
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of real data and published weights."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what rlskit remembers on this machine out of the user's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RLSKIT_CHECKPOINT", raising=False)
    monkeypatch.delenv("RLSKIT_DATA_DIR", raising=False)
