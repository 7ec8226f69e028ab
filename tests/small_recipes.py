"""Recipes of tests: of a finished checkpoint in a folder of its own, and of two small models."""

from __future__ import annotations

from pathlib import Path

import pytest

TWO_MODELS = """
title = "two models"
[convert]
name = "tiny.py:tiny"
image-size = 8
[train]
epochs = 1
"""
"""How a recipe of two small untrained models of `tiny.py` begins."""


def written(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write `rlskit.toml` and the checkpoint that it names, go there, and return its path."""
    monkeypatch.chdir(folder)
    Path("model.safetensors").write_bytes(b"any")
    Path("rlskit.toml").write_text(text)
    return Path("rlskit.toml")
