"""Bring an image to the size and the channels that a classifier expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from rlskit.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


MARGIN = 0.125
"""Share of an axis that may be cut off without a word: that of resize to 256, then crop to 224."""

MOST_LOST = 0.5
"""Where so much of an axis would be cut off, the image is not cropped but stretched."""


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the images at `shape`: resized to just cover it, centre cut out, gray repeated.

    The usual evaluation transform of ImageNet (shorter side, then centre crop), without the
    margin that some models add around the crop. Where that would cut off `MOST_LOST` of an axis or
    more, the whole image is resized instead, each axis on its own.

    Args:
        images: Float `[B, c, h, w]` in [0, 1].
        shape: `(C, H, W)`; `check_channels` allows `c` to become `C`.

    Returns:
        Float `[B, C, H, W]` in [0, 1]; `images` themselves where they fit already.
    """
    channels, height, width = shape
    before = (images.shape[-2], images.shape[-1])
    stretched = lost(*before, height, width) >= MOST_LOST
    size = (height, width) if stretched else _covering_size(*before, height, width)
    if images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    images = images[:, :, top : top + height, left : left + width]
    return images.expand(-1, channels, -1, -1).contiguous()


def lost(h: int, w: int, height: int, width: int) -> float:
    """Return the share of an axis that is cut off where `h` x `w` must cover `height` x `width`."""
    size = _covering_size(h, w, height, width)
    return max(1 - height / size[0], 1 - width / size[1])


def check_channels(name: str, have: int, want: int) -> None:
    """Require that images of `have` channels can be given to a classifier of `want`.

    Raises:
        RequestError: They cannot; `name` says whose images they are.
    """
    if have == want or (have, want) == (1, 3):
        return
    reason = "dropping their colour would change them" if want < have else "there is no rule for it"
    raise RequestError(
        f"{name} has images of {have} channel{'s'[: have > 1]}, but the checkpoint takes {want}, "
        f"and {reason}; use a checkpoint of {have} or convert the images first"
    )


def _covering_size(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Return the smallest size of aspect ratio `h : w` that covers `height` x `width`."""
    if height * w >= width * h:
        return height, w * height // h
    return h * width // w, width
