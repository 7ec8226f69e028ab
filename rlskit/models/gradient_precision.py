"""Gradients in bfloat16, all else in float32: half the time where a device is made for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_EXACT = ContextVar("exact", default=False)
"""Whether what asks for gradients now is to have them in float32."""


class GradientsInBf16(nn.Module):
    """A draw whose passes for gradients of its images are in bfloat16, and all others as they are.

    Convolutions and matrix products are, forward and backward (`torch.autocast`); what a network
    computes in between, as sums and softmax, keeps the precision that torch gives it there. The
    last step of an attack is an exception, all in float32 (`precise_at_last`).

    Args:
        draw: Images to logits, in float32.
    """

    def __init__(self, draw: nn.Module) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`, as float32."""
        if _EXACT.get() or not (torch.is_grad_enabled() and images.requires_grad):
            logits: Tensor = self.draw(images)
            return logits
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = self.draw(images)
        return logits.float()


@contextmanager
def precise_at_last(step: int, steps: int) -> Iterator[None]:
    """Let the last of an attack's several steps have float32's gradients.

    What is scored is where it ends: without it more images are left robust (docs/attacks.md).

    Args:
        step: Of the attack, from 0.
        steps: How many it takes.
    """
    token = _EXACT.set(0 < step == steps - 1)
    try:
        yield
    finally:
        _EXACT.reset(token)


def gains_by_bf16(device: torch.device) -> bool:
    """Say whether a device has instructions for bfloat16, which are what makes it faster there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(known.get("avx512_bf16") or known.get("amx_bf16"))
