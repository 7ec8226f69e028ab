"""A model that is given as a checkpoint, or as a network's name with its weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlskit.cli.flags import DATA, flag, under
from rlskit.cli.option_sets import Images
from rlskit.errors import RequestError

if TYPE_CHECKING:
    from rlskit.models import BankedModel

WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Of a network given by its name: .safetensors or .pth."),
]


@dataclass(frozen=True)
class Constants:
    """What a file of weights does not say of its network: options of `convert`."""

    num_classes: Annotated[int | None, under(DATA, "Instead of the data set's.")] = None
    in_chans: Annotated[int | None, under(DATA, "Instead of the data set's.")] = None
    image_size: Annotated[
        str | None,
        under(DATA, "Side in pixels, or height and width as H,W."),
    ] = None
    small_images: Annotated[
        bool,
        typer.Option("--small-images", help="3x3 stem without max-pool; VGG: one linear head."),
    ] = False
    mean: Annotated[str | None, under(DATA, "Per channel, as 0.485,0.456,0.406.")] = None
    std: Annotated[str | None, under(DATA, "Per channel, as 0.229,0.224,0.225.")] = None
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start every bank from the library's weights.")
    ] = False
    weights_key: Annotated[
        str | None, typer.Option(help="The part of the file to take, as state_dict_ema or a.b.")
    ] = None
    outputs: Annotated[
        str,
        typer.Option(
            help="What the network answers with: logits, probabilities, log-probabilities or "
            "sigmoid; by default what shows."
        ),
    ] = ""
    output_key: Annotated[
        str,
        typer.Option(help="Where it answers with several tensors: which, as logits or 0."),
    ] = ""

    @property
    def stated(self) -> dict[str, str | bool | int]:
        """Those that were given, by the name of their option."""
        all_of = {flag(one.name)[2:]: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in all_of.items() if value}

    @property
    def given(self) -> dict[str, Any]:
        """All of them, as the library takes them.

        Raises:
            RequestError: A text is no number.
        """
        return {one.name: getattr(self, one.name) for one in fields(self)} | {
            "image_size": _size(self.image_size),
            "mean": numbers("--mean", self.mean),
            "std": numbers("--std", self.std),
        }


def is_checkpoint(name: str, weights: str | None) -> bool:
    """Whether a model's name is that of a checkpoint's file, not a network's."""
    return weights is None and (Path(name).is_file() or Path(name).suffix == ".safetensors")


def opened(name: str, weights: str | None, constants: Constants, images: Images) -> BankedModel:
    """Return the model; a network by name gets no defense.

    Raises:
        RequestError: There is none, or its weights do not fit; or it is a network, and no images
            say what it is for; or a checkpoint, and something is stated that it holds.
    """
    import rlskit
    from rlskit.runtime.devices import choose_device

    if is_checkpoint(name, weights):
        for option in constants.stated:
            raise RequestError(f"{name} is a checkpoint, which holds it; leave --{option} out")
        return rlskit.load(name).to(choose_device())
    if images.data is None:
        raise RequestError(f"{name} is taken for a network; say with --data what images it is for")
    model = rlskit.convert(
        name, defense="none", weights=weights, data=images.data, data_dir=images.data_dir,
        skip_bad=images.skip_bad, **constants.given,
    )  # fmt: skip
    return model.to(choose_device())


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().replace("x", ",").split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise RequestError(f"--image-size {text!r} is neither a side, as 32, nor H,W, as 32,128")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of an option that takes several with commas.

    Raises:
        RequestError: They are none.
    """
    if text is None:
        return None
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise RequestError(f"{option} {text!r} is no list of numbers such as 0.5,0.5,0.5") from None
