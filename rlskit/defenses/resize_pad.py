"""Random resizing and padding, after training (Xie et al. 2018, arXiv 1711.01991).

They enlarge 299 pixels to at most 331; not every network takes larger images, so here images are
made smaller by as much and padded to the size that they had.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.perturbed import images_changed
from rlskit.defenses.variates import Variates
from rlskit.models.banks import BankedModel

SAMPLES = 10
SETTINGS = {"shrink": 0.1}
"""Share of each side that is lost at most; theirs is 32 of 331 pixels."""


def perturb(model: BankedModel) -> Perturb:
    """Return a context that makes images smaller and puts them somewhere on black."""
    shrink, pixels = model.card.settings["shrink"], model.card.pixels

    def moving(network: nn.Module, variates: Variates) -> AbstractContextManager[None]:
        def move(images: Tensor) -> Tensor:
            size, right, down = variates.choices(3)
            height, width = (round(side * (1 - shrink * size)) for side in images.shape[2:])
            spare = [images.shape[2] - height, images.shape[3] - width]
            top, left = round(spare[0] * down), round(spare[1] * right)
            mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (pixels.mean, pixels.std))
            black = -mean / std
            small = F.interpolate(images, (height, width)) - black
            padding = (left, spare[1] - left, top, spare[0] - top)
            return F.pad(small, padding) + black

        return images_changed(network, move)

    return moving
