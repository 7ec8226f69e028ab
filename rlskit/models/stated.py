"""What the files of a network say of the images and classes that it was made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What is said; nothing of it by default.

    Attributes:
        size: Height and width of the images; None where nothing says.
        channels: Theirs; None where nothing says.
        mean: Per channel, of pixels in [0, 1]; None where nothing says.
        std: Likewise.
        class_names: In the order of the logits; empty where they have no names.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] = ()
