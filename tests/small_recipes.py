"""A recipe of one finished checkpoint in a folder of its own; tests stand in for its commands."""

from __future__ import annotations

from pathlib import Path

import pytest


def written(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write `rlskit.toml` and the checkpoint that it names, go there, and return its path."""
    monkeypatch.chdir(folder)
    Path("model.safetensors").write_bytes(b"any")
    Path("rlskit.toml").write_text(text)
    return Path("rlskit.toml")
