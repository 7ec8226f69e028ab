"""A model that is given as a checkpoint, or as a network's name with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlskit.cli.option_sets import Images
from rlskit.errors import RequestError

if TYPE_CHECKING:
    from rlskit.models import BankedModel

WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Of a network given by its name: .safetensors or .pth."),
]


def is_checkpoint(name: str, weights: str | None) -> bool:
    """Whether a model's name is that of a checkpoint's file, not a network's."""
    return weights is None and (Path(name).is_file() or Path(name).suffix == ".safetensors")


def opened(name: str, weights: str | None, images: Images) -> BankedModel:
    """Return the model; a network by name gets no defense.

    Raises:
        RequestError: There is none, or its weights do not fit; or it is a network, and no images
            say what it is for.
    """
    import rlskit
    from rlskit.runtime.devices import choose_device

    if is_checkpoint(name, weights):
        return rlskit.load(name).to(choose_device())
    if images.data is None:
        raise RequestError(f"{name} is taken for a network; say with --data what images it is for")
    model = rlskit.convert(
        name, defense="none", weights=weights, data=images.data, data_dir=images.data_dir,
        skip_bad=images.skip_bad,
    )  # fmt: skip
    return model.to(choose_device())
