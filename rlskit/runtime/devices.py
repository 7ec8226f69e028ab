"""Where a model runs, and the settings without which a GPU would not repeat its own numbers."""

from __future__ import annotations

import os

import torch

from rlskit.errors import RequestError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` is a GPU if there is one.

    Of several GPUs, each process that torchrun starts takes its own.

    Raises:
        RequestError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on meta, where nothing is computed
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"`device` {name} is not available here; use cpu") from error
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
