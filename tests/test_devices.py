"""Devices: named ones, and those that are not there."""

from __future__ import annotations

import pytest
import torch

from rlskit.errors import RequestError
from rlskit.runtime.devices import choose_device


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are several: the one that it asks for is none of this machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "98")
    for name in ("auto", "cuda"):
        with pytest.raises(RequestError, match="`device` cuda:98 is not available"):
            choose_device(name)
    with pytest.raises(RequestError, match="`device` cuda:97 is not available"):
        choose_device("cuda:97")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(RequestError, match=f"`device` {name} is not available here; use cpu"):
        choose_device(name)
