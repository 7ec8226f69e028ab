"""What the long functions are given: a model or any module, and data by name, as data, or tensors.

They go on with a `BankedModel` and `Data`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlskit.data import Data, from_memory, load, memory_images
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.wrapping import wrap

GivenData = str | Data | tuple[Tensor, Tensor]
"""A data set's name, data, or images `[n, C, H, W]` with labels `[n]`."""


def taken(
    model: BankedModel | nn.Module, data: GivenData | None, split: str = "test"
) -> tuple[BankedModel, str | Data | None]:
    """Return a model of rlskit's, and data: a name or none only with what was one already.

    Args:
        model: From `convert` or `load`, or a module that maps images in [0, 1] to logits.
        data: What it is to be shown; a model may know it by itself, a module does not.
        split: What tensors stand for, and which part of named data a module is shown.

    Raises:
        RequestError: They are something else, or do not fit each other.
    """
    pair = pair_of(data)
    if isinstance(model, BankedModel):
        if pair is None:
            return model, data  # type: ignore[return-value]
        return model, from_memory(*pair, model.card.classes, split)
    if data is None:
        raise RequestError(
            "a module in memory does not say what images it takes; give data, as in "
            "data=(images, labels), or wrap it first: rlskit.wrap(module, (C, H, W))"
        )
    if pair is not None:
        images = memory_images(pair[0])
        banked = wrap(model, images=images)
        return banked, from_memory(images, pair[1], banked.card.classes, split)
    found = data if isinstance(data, Data) else load(data, split)  # type: ignore[arg-type]
    return wrap(model, found.shape), found


def pair_of(data: object) -> tuple[Any, Any] | None:
    """Return images and labels as they were given; None for a name, data, or nothing.

    Raises:
        RequestError: It is something else.
    """
    if data is None or isinstance(data, str | Data):
        return None
    if isinstance(data, tuple | list) and len(data) == 2:
        return data[0], data[1]
    raise RequestError(
        f"data is a name, Data from rlskit.load_data, or (images, labels), not a "
        f"{type(data).__name__}"
    )
