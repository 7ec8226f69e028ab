"""Shared by all tests."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real data and published weights beside the repository; tests that need them skip without."""

# Tiny networks: threads would cost more than they bring, and two processes would fight for cores.
torch.set_num_threads(1)


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
