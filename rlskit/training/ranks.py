"""A batch shared by the processes that train together, and their gradients added up.

Each rank takes a run of the batch's images. A mean over all images is the sum of the ranks' means,
each weighted by its share of them; so are its gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlskit.models.banks import BankedModel
from rlskit.runtime.sharding import WHOLE, Shard
from rlskit.runtime.together import Ranks


@dataclass(frozen=True)
class Share:
    """What is a rank's of a batch.

    Attributes:
        size: Images of the whole batch.
        mine: Which of them are this rank's.
        copy: 1; a fraction where every rank has the whole batch, so that sums are right.
    """

    size: int
    mine: slice
    copy: float = 1.0

    @classmethod
    def of(cls, size: int, shard: Shard = WHOLE) -> Share:
        """Return a shard's share of a batch: all of one that is too small to be shared."""
        mine = shard.part(size)
        whole = mine == slice(0, size)
        return cls(size, mine, 1 / shard.count if whole else 1.0)

    @property
    def weight(self) -> float:
        """Of the mean over this rank's images in that over the batch."""
        return self.copy * len(range(*self.mine.indices(self.size))) / self.size

    def drawn(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return uniform numbers for each of this rank's images, those one process would draw."""
        size = (self.size, *shape)
        numbers = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
        return numbers[self.mine]


def add_gradients(ranks: Ranks, parameters: Sequence[nn.Parameter], facts: Tensor) -> Tensor:
    """Add up the ranks' gradients in place, and return the sum of their facts.

    Only what a step used on any rank is moved, and sent: the layers of the banks in its plans. All
    ranks know the plans, but not what another's network left out by its own randomness; so each
    says which gradients it has. The rest stays None, which the optimizer passes over.

    Args:
        ranks: This process, and the others.
        parameters: All of the model, in the same order on all ranks.
        facts: A few numbers on the device, which go with the gradients.
    """
    if not ranks.many:
        return facts
    used = ranks.most([parameter.grad is not None for parameter in parameters])
    moved = [parameter for parameter, some in zip(parameters, used, strict=True) if some]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    ranks.add([*(one.grad for one in moved if one.grad is not None), facts])
    return facts


def share_buffers(ranks: Ranks, model: BankedModel) -> None:
    """Give all ranks the first one's running statistics, and what else networks keep of batches."""
    if ranks.many:
        ranks.give([buffer for buffer in model.banks.buffers() if buffer.is_floating_point()])
