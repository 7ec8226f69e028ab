"""Square attack: random search with squares that shrink, which needs the model's scores only.

Andriushchenko et al. 2020 (https://arxiv.org/abs/1912.00049). torchattacks 3.5.1 gives all images
of a batch the same squares and signs, and so do the authors; here every image has its own. Where
torchattacks strays from the paper, this does not: a square may touch the last row and column, the
l2 budget of a window is shared out per channel, and images below 5 x 5 or not square work.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.attacks.attempts import Attempt, Found, best_of
from rlskit.attacks.losses import LOSSES
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.randomness import image_generators, rand
from rlskit.seeds import Purpose

TINY = 1e-12
"""Added to a norm before dividing by it."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the area of a square is halved (section 5 of the paper)."""

CHUNK = 100
"""For how many queries an image's random numbers are drawn at once."""


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 5000,
    p_init: float = 0.8,
    loss: str = "margin",
    restarts: int = 1,
    generator: torch.Generator,
) -> Tensor:
    """Change a random square; keep the change if the loss grows.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`; gradients are not used.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Queries per image and restart, that of the start included.
        p_init: Share of the image's area that the first squares take.
        loss: A key of `rlskit.attacks.losses.LOSSES`.
        restarts: Runs per image, with other random numbers; an image that was fooled rests.
        generator: Its seed is that of all random numbers.

    Returns:
        The first point that fools; elsewhere the point of highest loss; where the model errs on the
        image itself, that image.

    Raises:
        UntrustedError: Non-finite logits.
    """
    runs = searches(
        model, norm=norm, eps=eps, steps=steps, p_init=p_init, loss=loss, restarts=restarts,
        generator=generator,
    )  # fmt: skip
    return best_of(model, images, labels, lambda classes: runs)  # noqa: ARG005


def square_passes(_: Setting, *, steps: int, restarts: int, **__: object) -> Passes:
    """Count what `square` asks for where it never fools the model."""
    return Passes(1 + restarts * steps, 0)


def searches(
    model: nn.Module,
    *,
    norm: str,
    eps: float,
    steps: int,
    p_init: float,
    loss: str,
    restarts: int,
    generator: torch.Generator,
) -> list[Attempt]:
    """Return the runs of `square`, for `attempts.best_of`."""

    def run(restart: int, images: Tensor, labels: Tensor) -> Found:
        streams = image_generators(images, generator, Purpose.SQUARE, restart)
        return _search(
            model, images, labels, streams,
            norm=norm, eps=eps, steps=steps, p_init=p_init, loss=loss,
        )  # fmt: skip

    return [partial(run, restart) for restart in range(restarts)]


@torch.no_grad()
def _search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    streams: list[torch.Generator],
    *,
    norm: str,
    eps: float,
    steps: int,
    p_init: float,
    loss: str,
) -> Found:
    """Run Algorithm 1 of the paper once, on all images side by side."""
    begin, change = (_stripes, _fill) if norm == "linf" else (_tiles, _move_mass)

    def judge(x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return LOSSES[loss](logits, own), logits.argmax(1) != own

    best = begin(images, streams, eps)
    value, fooled = judge(best, labels)
    for query in range(1, steps):
        rows = (~fooled).nonzero().squeeze(1)
        if not len(rows):
            break
        if query % CHUNK == 1:
            numbers = _numbers(images, streams)
        side = _side(images, p_init, query / steps, norm)
        x = change(images[rows], best[rows], numbers[rows, (query - 1) % CHUNK], side, eps)
        new, fools = judge(x, labels[rows])
        keep = fools | (new > value[rows])
        best[rows[keep]], value[rows[keep]] = x[keep], new[keep]
        fooled[rows] = fools
    return Found(best, value, fooled)


def _side(images: Tensor, p_init: float, progress: float, norm: str) -> int:
    """Return the side of a square after that share of the queries; odd in l2, as in the paper."""
    height, width = images.shape[2:]
    share = p_init / 2 ** bisect_left(HALVINGS, int(progress * 10_000))
    side = round(math.sqrt(share * height * width))
    side = max(side, 1) if norm == "linf" else max(side, 3) | 1
    return min(side, height, width)


def _numbers(images: Tensor, streams: list[torch.Generator]) -> Tensor:
    """Return what `CHUNK` queries need, uniform in [0, 1), `[B, CHUNK, 5 + C]`.

    Two corners of squares, whether to turn one, and a sign per channel.
    """
    return rand((CHUNK, 5 + images.shape[1]), streams).to(images)


# --- linf


def _stripes(images: Tensor, streams: list[torch.Generator], eps: float) -> Tensor:
    """Return the start: every column of every channel all `eps` up or all down."""
    _, channels, _, width = images.shape
    numbers = rand((channels, 1, width), streams)
    return (images + eps * _signs(numbers.to(images))).clamp(0, 1)


def _fill(images: Tensor, best: Tensor, numbers: Tensor, side: int, eps: float) -> Tensor:
    """Set a square of each channel all `eps` up or all down (Algorithm 2)."""
    rows, columns = _corner(numbers[:, :2], images, side)
    inside = _within(rows, columns, side)
    moved = (images + eps * _signs(numbers[:, 5:, None, None])).clamp(0, 1)
    return torch.where(inside, moved, best)


# --- l2


def _tiles(images: Tensor, streams: list[torch.Generator], eps: float) -> Tensor:
    """Return the start: about 5 x 5 bumps, each turned and signed at random."""
    channels, height, width = images.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    numbers = rand((1 + channels, down, across), streams)
    numbers = numbers.repeat_interleave(side, 2).repeat_interleave(side, 3).to(images)
    bump = _bump(side).to(images)
    tiles = torch.where(
        numbers[:, :1] < 0.5, bump.repeat(down, across), bump.T.repeat(down, across)
    )
    top, left = (height - down * side) // 2, (width - across * side) // 2
    bottom, right = height - down * side - top, width - across * side - left
    delta = F.pad(tiles * _signs(numbers[:, 1:]), (left, right, top, bottom))
    return _at_distance(images, delta, eps)


def _move_mass(images: Tensor, best: Tensor, numbers: Tensor, side: int, eps: float) -> Tensor:
    """Move the perturbation of a second square into a bump in a first one (Algorithm 3)."""
    delta, channels = best - images, images.shape[1]
    rows, columns = _corner(numbers[:, :2], images, side)
    first = _within(rows, columns, side)
    second = _within(*_corner(numbers[:, 2:4], images, side), side)

    bump = _bump(side).to(images)
    r, c = rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]
    turned = numbers[:, 4, None, None] < 0.5
    shape = torch.where(turned, bump[c, r], bump[r, c])[:, None]

    there = delta * first
    target = (_signs(numbers[:, 5:, None, None]) * shape + there / (_length(there) + TINY)) * first
    unused = (eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
    length = (_length(delta * (first | second)).square() + unused / channels).sqrt()
    moved = target / (_length(target) + TINY) * length
    return _at_distance(images, torch.where(first, moved, delta * ~second), eps)


def _bump(side: int) -> Tensor:
    """Return the update of norm 1: a pyramid beside the negative of one (equation 3)."""
    upper, lower = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    both = torch.cat([upper, -lower])
    return both / both.square().sum().sqrt()


def _pyramid(height: int, width: int) -> Tensor:
    """Return the sum of 1/k² over the k-th of a series of growing, centred squares (equation 2).

    Its norm is 1, as in the authors' code, so that uneven halves of a bump weigh the same.
    """
    rings = torch.arange(1, max(height, width) // 2 + 2)
    heights = (1 / rings.square()).flip(0).cumsum(0).flip(0)
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    pyramid = heights[torch.maximum(rows[:, None], columns)]
    return pyramid / pyramid.square().sum().sqrt()


def _at_distance(images: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Return the images moved by `eps` in the direction of `delta`, clipped to the box."""
    size = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
    return (images + delta / (size + TINY) * eps).clamp(0, 1)


def _length(delta: Tensor) -> Tensor:
    """Return the l2 norm of every channel, `[B, C, 1, 1]`."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


# --- both


def _signs(numbers: Tensor) -> Tensor:
    """Turn numbers in [0, 1) into -1 and 1."""
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers)


def _corner(numbers: Tensor, images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return how far each row `[B, H]` and column `[B, W]` is from a random square's corner.

    Args:
        numbers: In [0, 1), `[B, 2]`; every place inside the image is as likely.
        images: `[B, C, H, W]`.
        side: The square's.
    """
    places = [
        torch.arange(size, device=images.device)
        - (numbers[:, axis, None] * (size - side + 1)).long().clamp_max(size - side)
        for axis, size in enumerate(images.shape[2:])
    ]
    return places[0], places[1]


def _within(rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Return the square's mask, bool `[B, 1, H, W]`."""
    down, across = ((place >= 0) & (place < side) for place in (rows, columns))
    return (down[:, :, None] & across[:, None, :])[:, None]
