"""Devices: named ones, and those that are not there."""

from __future__ import annotations

import pytest
import torch

from rlskit.errors import RequestError
from rlskit.runtime.devices import choose_device


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(RequestError, match=f"`device` {name} is not available here; use cpu"):
        choose_device(name)
