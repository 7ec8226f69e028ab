"""Pixels: the sole owner of ranges, budgets, normalisation constants and perturbation norms.

Outside the classifier an image is a float tensor `[B, C, H, W]` in [0, 1]. Budgets may be stated in
the paper's scale [-1, 1] (`--pixel-range -1:1`): a perturbation d' there is d = d'/2 here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlskit.errors import RequestError, UntrustedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PIXEL_RANGES = {"0:1": 1.0, "-1:1": 2.0}
"""Name of a scale of pixel values -> its width."""

_ROUNDING = 1e-3

BUDGET_SLACK = 1e-6
"""Rounding that a perturbation may exceed its budget by, in [0, 1]."""


@dataclass(frozen=True)
class Pixels:
    """What a classifier expects of an image: its size and the constants of its first step.

    Attributes:
        channels: Number of channels.
        height: Height in pixels.
        width: Width in pixels.
        mean: Per-channel mean that is subtracted, in [0, 1].
        std: Per-channel standard deviation that is divided by.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise RequestError(f"an image cannot have the shape {self.shape}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise RequestError(
                    f"{name} needs one finite number per channel: {self.channels}, not {values}"
                )
        if min(self.std) <= 0:
            raise RequestError(f"std must be positive, not {self.std}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        return (self.channels, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Pixels:
        """Rebuild from `to_json`'s fields.

        Raises:
            RequestError: A field is missing or out of range.
        """
        try:
            channels, height, width = (int(fields[k]) for k in ("channels", "height", "width"))
            mean, std = (tuple(map(float, fields[k])) for k in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"the checkpoint's pixel constants are unreadable ({error})"
            ) from error
        return cls(channels, height, width, mean, std)


def parse_number(text: str | float, option: str) -> float:
    """Return the finite, non-negative number that `text` states, as `0.02` or `8/255`.

    Raises:
        RequestError: It is no such number; `option` is named.
    """
    try:
        numerator, _, denominator = str(text).partition("/")
        value = float(numerator) / (float(denominator) if denominator else 1.0)
    except (ValueError, ZeroDivisionError):
        raise RequestError(f"{option} {text!r} is not a number; write 0.02 or 8/255") from None
    if not math.isfinite(value) or value < 0:
        raise RequestError(f"{option} {text} must be a finite number of at least 0")
    return value


def parse_budget(text: str | float, pixel_range: str = "0:1", option: str = "`eps`") -> float:
    """Return a perturbation budget as a fraction of the pixel range, so in [0, 1].

    Args:
        text: The budget in the scale `pixel_range`, as `0.02`, `8/255` or `2.55/255`.
        pixel_range: A key of `PIXEL_RANGES`.
        option: Its name in error messages.

    Raises:
        RequestError: Not a number, negative, or wider than the whole pixel range.
    """
    value, width = parse_number(text, option), range_width(pixel_range)
    if value > width:
        raise RequestError(
            f"{option} {text} is more than the whole pixel range {pixel_range}; "
            f"did you mean {text}/255?"
        )
    return value / width


def range_width(pixel_range: str) -> float:
    """Return the width of the named scale of pixel values.

    Raises:
        RequestError: There is no scale of that name.
    """
    if pixel_range not in PIXEL_RANGES:
        known = " or ".join(PIXEL_RANGES)
        raise RequestError(f"`pixel_range` {pixel_range!r} is unknown; it is {known}")
    return PIXEL_RANGES[pixel_range]


def check_images(images: Tensor, what: str = "images") -> None:
    """Require float `[B, C, H, W]`, finite, in [0, 1].

    Raises:
        RequestError: They are something else; the message says what.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise RequestError(
            f"{what} must be a float tensor [B, C, H, W], not {images.dtype} {list(images.shape)}"
        )
    if not images.isfinite().all():
        raise RequestError(f"{what} hold NaN or infinite pixels")
    low, high = (images.min().item(), images.max().item()) if images.numel() else (0.0, 0.0)
    if low < 0 or high > 1:
        raise RequestError(
            f"{what} must lie in [0, 1], but span [{low:.8g}, {high:.8g}]; "
            f"{range_advice(low, high)}"
        )


def range_advice(low: float, high: float) -> str:
    """Return what brings pixels of that range into [0, 1], as far as the range tells."""
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return "that is rounding: clip it"
    if low < 0:
        return "undo the normalisation: mean and std belong to the model"
    if 64 < high <= 255:
        return "divide by 255 or store as uint8, if that is the largest value of its kind"
    return "divide by the largest value that a pixel of its kind can have"


_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l0": lambda delta: (delta != 0).sum(1).double(),
    "l1": lambda delta: delta.abs().sum(1),
    "l2": lambda delta: delta.norm(dim=1),
    "linf": lambda delta: delta.abs().amax(1),
}


def perturbation_norms(clean: Tensor, adversarial: Tensor, *norms: str) -> dict[str, Tensor]:
    """Return each image's l0 (changed values), l1, l2 and linf distance, float `[B]`.

    Args:
        clean: The images that were attacked, `[B, C, H, W]`.
        adversarial: What became of them.
        norms: The names of those that are wanted; all by default.
    """
    delta = (adversarial - clean).flatten(1).double()
    return {name: _NORMS[name](delta) for name in norms or _NORMS}


def check_adversarial(
    clean: Tensor, adversarial: Tensor, norm: str | None = None, eps: float | None = None
) -> None:
    """Verify what an attack returned; a violation is the attack's error and is never clipped away.

    Args:
        clean: The images that were attacked, `[B, C, H, W]` in [0, 1].
        adversarial: What came back.
        norm: The norm (a key of `perturbation_norms`) that `eps` bounds; None for no bound.
        eps: The budget, in [0, 1] units.

    Raises:
        UntrustedError: Another shape, non-finite, outside [0, 1], or over the budget.
    """
    if adversarial.shape != clean.shape:
        raise UntrustedError(
            f"the attack returned images of shape {list(adversarial.shape)}, "
            f"not {list(clean.shape)}: its result means nothing"
        )
    if not adversarial.isfinite().all():
        raise UntrustedError("the attack returned NaN or infinite pixels: its result means nothing")
    low, high = adversarial.min().item(), adversarial.max().item()
    if low < 0 or high > 1:
        raise UntrustedError(f"the attack left [0, 1]: its pixels span [{low:.7g}, {high:.7g}]")
    if norm is not None and eps is not None:
        largest = perturbation_norms(clean, adversarial, norm)[norm].max().item()
        if largest > eps + BUDGET_SLACK:
            raise UntrustedError(f"the attack broke its budget: {norm} {largest:.7g} > {eps:.7g}")


def round_to_8bit(images: Tensor) -> Tensor:
    """Return the images as they are after saving them with 8 bits a channel."""
    return (images * 255).round() / 255
