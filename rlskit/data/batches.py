"""Runs of images: fixed blocks to evaluate on, shuffled and augmented batches to train on."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rlskit.errors import RequestError
from rlskit.runtime.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from rlskit.data.dataset import Data

PADDING = 4
"""Pixels that `crop-flip` may shift an image by, after He et al. 2016, section 4.2."""


def runs(n: int, batch_size: int) -> list[range]:
    """Return the blocks of `n` images: consecutive indices, each `batch_size` but the last.

    Raises:
        RequestError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise RequestError(f"`batch_size` {batch_size} must be at least 1")
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


def blocks(
    data: Data, batch_size: int, num_workers: int = 0, *, done: Collection[int] = ()
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield the blocks of the data in order: the unit of work of an evaluation.

    Args:
        data: What to read.
        batch_size: Size of a block.
        num_workers: Threads that read ahead; 0 reads when asked. The blocks are the same.
        done: Numbers of blocks (in `runs`) that are not wanted, and not read.

    Yields:
        The dataset indices, the images float32 `[b, C, H, W]` in [0, 1], the labels long `[b]`.

    Raises:
        RequestError: A bad option or a corrupt image.
    """
    wanted = [run for number, run in enumerate(runs(len(data), batch_size)) if number not in done]
    for run, images in zip(wanted, _read_ahead(data, wanted, num_workers), strict=True):
        yield run, images, data.labels[run.start : run.stop]


def batches(
    data: Data,
    batch_size: int,
    generator: torch.Generator,
    augment: str = "none",
    num_workers: int = 0,
    *,
    start: int = 0,
    device: torch.device | str = "cpu",
    shard: Shard = WHOLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of training batches, shuffled.

    Every image comes once, except that a last batch of a single image is left out: BatchNorm
    has no variance to take from it.

    Args:
        data: What to train on.
        batch_size: Images per batch.
        generator: The only source of randomness, whatever `num_workers` is.
        augment: A key of `AUGMENTATIONS`.
        num_workers: Threads that read ahead; 0 reads when asked. The batches are the same.
        start: The first batch that is wanted. Those before it are not read, and those after it
            are as they would be behind them.
        device: Where they go, and are augmented.
        shard: Whose part of each batch is wanted, as it is in the whole of it.

    Yields:
        The images float32 `[b, C, H, W]` in [0, 1], the labels long `[b]`.

    Raises:
        RequestError: A bad option or a corrupt image.
    """
    if augment not in AUGMENTATIONS:
        raise RequestError(f"`augment` {augment!r} is unknown; it is {' or '.join(AUGMENTATIONS)}")
    order = torch.randperm(len(data), generator=generator)
    chosen = [order[run.start : run.stop] for run in runs(len(data), batch_size)]
    if batch_size > 1 and len(chosen[-1]) == 1:
        chosen.pop()
    change = AUGMENTATIONS[augment]
    for indices in chosen[:start]:
        change(torch.empty(len(indices), 0, *data.shape[1:]), generator)  # draws, and costs nothing
    sizes = [len(indices) for indices in chosen[start:]]
    parts = [shard.part(size) for size in sizes]
    mine = [indices[part] for indices, part in zip(chosen[start:], parts, strict=True)]
    stream = zip(sizes, parts, mine, _read_ahead(data, mine, num_workers), strict=True)
    for size, part, indices, images in stream:
        changed = change(_sent(images, device), generator, size, part)
        yield changed, _sent(data.labels[indices], device)


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # else it waits for what runs there


def crop_flip(
    images: Tensor, generator: torch.Generator, size: int | None = None, part: slice = slice(None)
) -> Tensor:
    """Shift each image by up to `PADDING` pixels over black, and mirror half of them.

    The augmentation of CIFAR in He et al. 2016, section 4.2: pad, crop at random, flip at random.

    Args:
        images: `[B, C, H, W]`.
        generator: Draws the shift and the flip of each image of a batch.
        size: Of the batch; that of `images` by default.
        part: Which of the batch `images` are.

    Returns:
        `[B, C, H, W]`, of the same pixels and zeros.
    """
    (b, _, height, width), device = images.shape, images.device
    size = b if size is None else size
    shifts = torch.randint(2 * PADDING + 1, (2, size, 1), generator=generator)[:, part]
    mirrored = torch.rand(size, 1, generator=generator, dtype=torch.float32)[part] < 0.5
    mirrored, (top, left) = _sent(mirrored, device), _sent(shifts, device)
    columns = torch.arange(width, device=device).expand(b, width)
    columns = left + torch.where(mirrored, columns.flip(1), columns)
    rows = top + torch.arange(height, device=device)
    padded = F.pad(images, [PADDING] * 4)
    each = torch.arange(b, device=device)[:, None, None]
    # The indices around the channel axis move it to the end: [B, H, W, C].
    cropped = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


def _unchanged(images: Tensor, *_: object) -> Tensor:
    return images


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {"none": _unchanged, "crop-flip": crop_flip}
"""Name -> function of images, a generator, the size of their batch, and which of it they are."""


def _read_ahead(
    data: Data, chosen: Sequence[range] | Sequence[Tensor], num_workers: int
) -> Iterator[Tensor]:
    """Yield the images of each run of indices, in order, reading ahead in threads.

    Threads and not processes: Pillow and torch release the interpreter while they decode and
    resize, and nothing has to be copied, pickled or fit in /dev/shm.
    """
    if num_workers < 0:
        raise RequestError(f"`num_workers` {num_workers} must be at least 0")
    if num_workers == 0:
        yield from map(data.images, chosen)
        return
    pending: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for indices in chosen:
            pending.append(pool.submit(data.images, indices))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
