"""Any timm, torchvision or own network -> a model with M banks of its weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlskit import seeds
from rlskit.arguments import checked
from rlskit.conversion.remedies import Asked, remedy
from rlskit.conversion.weights import Weights, find_weights, load_weights
from rlskit.data import describe, read_classes
from rlskit.defenses import DEFENSES, check_effect
from rlskit.defenses.defense import bank_zero
from rlskit.errors import RequestError
from rlskit.models.architecture import Architecture, resolve
from rlskit.models.banks import BankedModel, Card
from rlskit.models.building import build, build_on_meta, configure
from rlskit.models.copying import duplicate
from rlskit.models.hub_folder import read_folder
from rlskit.models.outputs import ONE_NUMBER, check_outputs, kind_of
from rlskit.models.own import heard
from rlskit.models.partition import partition
from rlskit.models.programs import stated_by
from rlskit.models.published import WITH_AUXILIARY_HEADS, library_classes, library_pixels
from rlskit.models.stated import Stated
from rlskit.models.stem import first_convolution
from rlskit.models.streams import kept, sources_of, started
from rlskit.models.trace import Trace, inexact, tensor_names, trace
from rlskit.models.trial import try_own
from rlskit.pixels import Pixels
from rlskit.seeds import Purpose
from rlskit.text import nearest

LIBRARY = "library"
"""A card's `pretrained` where timm's or torchvision's weights were taken."""

FACTORY = "factory"
"""A card's `pretrained` where the factory of one's own network brings the weights."""

_ASSUMED_TRANSFORM = (
    "ASSUMED: {file} was trained from torchvision's own weights of {name}, whose images are "
    "normalised once more (transform_input=True); if it was trained from scratch its numbers are "
    "wrong: give `transform_input=False`. `transform_input=True` confirms it."
)

INITS = ("independent", "copy", "jitter")
JITTER = 0.01
"""Noise of `--init jitter`, relative to each tensor's own standard deviation."""

_SMALLEST_SIDE, _ENLARGED_SIDE = 28, 32  # most stems halve the image five times
_LONGEST_SIDE = 4096  # that enlarging may lead to


@checked()
def convert(
    name: str,
    *,
    banks: int | None = None,
    defense: str = "rls",
    granularity: str | None = None,
    bank_only: str | None = None,
    bank_probs: tuple[float, ...] = (),
    settings: Mapping[str, float] | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    small_images: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    pretrained: bool = False,
    weights: str | Path | Sequence[str | Path] | None = None,
    weights_key: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    skip_bad: bool = False,
    transform_input: bool | None = None,
    init: str | None = None,
    outputs: str = "",
    output_key: str = "",
    seed: int = 0,
) -> BankedModel:
    """Build M networks of one architecture and partition them into the layers that are sampled.

    Args:
        name: A timm or torchvision name, `timm:NAME`, `torchvision:NAME`, `FILE.py:factory`,
            `package.module:factory`, a file with code and weights (torch.export, TorchScript), or
            a folder of transformers with its weights (`hf:PATH`).
        banks: M; by default 2 for `rls`, 3 for `ensemble` and `adp`, 1 for the others.
        defense: A key of `rlskit.defenses.DEFENSES`.
        granularity: One of `rlskit.models.GRANULARITIES`; by default the defense's.
        bank_only: Glob over layer names; the other layers are shared by all banks.
        bank_probs: Probability of each bank in a random plan of `rls`; by default 1/M each.
        settings: Some of the defense's own numbers by name, such as `{"alpha": 1.0}` for `adp`; the
            others have the defaults of `DEFENSES`.
        data: The data set whose classes, channels, size and mean/std the model is made for;
            `digits` by default, unless weights are given.
        data_dir: Where torchvision's data sets lie.
        num_classes: Instead of the data set's.
        in_chans: Instead of the data set's channels.
        image_size: Side, or height and width, in pixels, instead of the data set's.
        small_images: 3x3 stem without max-pool; one linear layer as VGG's head.
        mean: Per-channel mean in [0, 1]; by default the library's for pretrained weights, else the
            data set's.
        std: Likewise.
        pretrained: Start every bank from the library's weights.
        weights: Start every bank from this file; or each from its own of several files, or of the
            members that one file holds.
        weights_key: The part of the file to take, such as `state_dict_ema` or `a.b`.
        classes: The classes' names in the order of the logits, or a file with one a line. Data are
            matched to them by name, and may lack some. By default the data set's, or the library's.
        skip_bad: Measure the data set without the images that cannot be read.
        transform_input: For torchvision's GoogLeNet and Inception: whether images are normalised
            once more, as its own weights want it; by default if weights are given.
        init: `independent` seeds per bank (the default without weights), `copy`, or `jitter`:
            copies with a little noise.
        outputs: What the network answers with, one of `rlskit.models.outputs.OUTPUTS`; by default
            what its last step or its answers show.
        output_key: Where it answers with several tensors, the key or place of the one that holds
            the classes, as `logits`, `0` or `out.logits`; by default the one called logits, or the
            first of a tuple.
        seed: Seeds the initialisation.

    Raises:
        RequestError: A name, file or option is wrong, or they do not fit together.
        RunError: Pretrained weights could not be downloaded.
    """
    if defense not in DEFENSES:
        raise RequestError(f"`defense` {defense!r} is unknown; {nearest(defense, DEFENSES)}")
    size, files = _checked_size(image_size), _files(weights)
    _check_counts(num_classes=num_classes, in_chans=in_chans)
    _check_constants(mean=mean, std=std)
    _check_banks(banks, defense)
    check_outputs(outputs)
    if bank_probs and defense != "rls":
        raise RequestError(f"`bank_probs` is for `defense='rls'`, not {defense}")
    architecture = resolve(name)
    if files and architecture.is_program:
        raise RequestError(f"{name} is a program that holds its weights; leave `weights` out")
    folder = architecture.is_hub_folder
    pretrained = not files if folder else pretrained
    stated = _stated(name, architecture)  # where no option says otherwise
    size, in_chans = size or stated.size, in_chans or stated.channels
    mean, std = mean or stated.mean, std or stated.std
    if weights_key is not None and not files:
        raise RequestError("`weights_key` names a part of `weights='FILE'`; give that, too")
    init = _checked_init(init, pretrained=pretrained, files=files)
    if pretrained and architecture.source == "own" and not folder:
        raise RequestError(f"`pretrained`: no library has weights of {name}; give `weights='FILE'`")
    facts = _facts(
        architecture, data, data_dir, size, pretrained=pretrained, files=files, skip_bad=skip_bad
    )
    pixels = _pixels(facts, architecture, in_chans=in_chans, size=size, mean=mean, std=std)
    names = stated.class_names if classes is None else read_classes(classes)
    wanted = _wanted_classes(_agreed(num_classes, len(names)) or facts["classes"], name)
    asked = Asked(
        architecture, wanted, pixels.channels, (pixels.height, pixels.width), small_images
    )
    given = pretrained or bool(files)
    transforms = _transforms(transform_input, architecture, pixels, given=given)
    architecture = configure(
        architecture,
        classes=wanted,
        channels=pixels.channels,
        image_size=(pixels.height, pixels.width),
        small_images=small_images,
        transform_input=transforms,
    )
    # What is wrong shows before time is spent on weights.
    on_meta = build_on_meta(architecture, pixels.shape)
    with heard():
        shown = trace(on_meta, pixels.shape, key=output_key, classes=wanted)
    most = 1 if DEFENSES[defense].plan is bank_zero else banks
    found = _found_weights(on_meta, files, weights_key, most, shown, asked) if files else None
    assumed = _assumed(facts, pixels, size=size, mean=mean, std=std)
    card = Card(
        architecture=architecture,
        pixels=pixels,
        classes=_checked_classes(shown.output[1], wanted, architecture),
        defense=defense,
        bank_probs=bank_probs,
        settings={**DEFENSES[defense].settings, **(settings or {})},
        data=facts["data"],
        pretrained=LIBRARY if pretrained else found.source if found else "",
        outputs=outputs,
        output_key=shown.key,
        assumed=assumed if files or folder else (),
        notes=found.notes if found else (),
    )
    card.class_names = _named_classes(card, names, facts, given=pretrained or bool(files))
    parts = partition(on_meta, shown, granularity or DEFENSES[defense].granularity, bank_only)
    count = banks or (found.count if found else None) or DEFENSES[defense].banks
    _check_banks(count, defense)
    if architecture.source == "own" and try_own(card, parts) and not files:
        if not architecture.is_program:
            _check_channels(architecture)
        card.pretrained, card.assumed = FACTORY, assumed
    if found and transforms and transform_input is None:
        told = _ASSUMED_TRANSFORM.format(name=architecture.name, file=found.source)
        card.assumed = (*card.assumed, told)
    networks = _banks(card, count, init, weights=found, seed=seed)
    model = BankedModel(networks, parts, card)
    check_effect(model)
    card.outputs = outputs or _shown_outputs(model)
    return model


def _shown_outputs(model: BankedModel) -> str:
    """Return what the first bank's answers to random images show themselves to be."""
    draw = model.sampled(torch.zeros(model.num_layers, dtype=torch.long))
    images = torch.rand(2, *model.card.pixels.shape, generator=torch.Generator().manual_seed(0))
    inputs = draw.normalize(images).to(draw.reading.dtype)
    with heard(), kept(sources_of(draw)):
        return kind_of(draw.network, inputs, draw.reading.key)


def _transforms(
    asked: bool | None, architecture: Architecture, pixels: Pixels, *, given: bool
) -> bool:
    """Return whether torchvision's network is to normalise its images once more."""
    can = architecture.source == "torchvision" and architecture.name in WITH_AUXILIARY_HEADS
    if asked is not None and not can:
        known = " and ".join(WITH_AUXILIARY_HEADS)
        raise RequestError(f"`transform_input` is for torchvision's {known}, not for this model")
    if asked and pixels.channels != 3:
        raise RequestError(f"`transform_input` is for 3 channels, not {pixels.channels}")
    return can and pixels.channels == 3 and (given if asked is None else asked)


def _check_channels(architecture: Architecture) -> None:
    """Require that the weights which a factory brings are used as they are."""
    found = first_convolution(build_on_meta(replace(architecture, in_chans=None)))
    if found is not None and architecture.in_chans not in (None, found[1].in_channels):
        raise RequestError(
            f"{architecture.name} brings weights for images of {found[1].in_channels} channels, "
            f"not {architecture.in_chans}; give `in_chans={found[1].in_channels}`, or `data`"
        )


def _check_counts(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise RequestError(f"`{name}` must be at least 1, not {value}")


def _check_banks(banks: int | None, defense: str) -> None:
    if banks is not None and banks < 1:
        raise RequestError(f"`banks` must be at least 1, not {banks}")
    if banks not in (None, 1) and DEFENSES[defense].plan is bank_zero:
        raise RequestError(f"`defense={defense!r}` has 1 bank, not {banks}")


def _stated(name: str, architecture: Architecture) -> Stated:
    """Return what the files of a network say of its images and classes."""
    if architecture.is_hub_folder:
        return read_folder(name)
    if architecture.is_program:
        return stated_by(name, architecture.digest)
    return Stated()


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(side, int) for side in both):
        raise RequestError(f"`image_size` is a side, or height and width, not {size}")
    if min(both) < 1:
        raise RequestError(f"`image_size` must be at least 1, not {min(both)}")
    return both[0], both[1]


def _check_constants(**given: tuple[float, ...] | None) -> None:
    """Require constants of pixels in [0, 1]; those of 0 to 255 would blank every image."""
    for name, values in given.items():
        if values is not None and any(not 0 <= v <= 1 for v in values if math.isfinite(v)):
            scaled = tuple(float(f"{value / 255:.4g}") for value in values)
            hint = f"; divide by 255: `{name}={scaled}`" if max(values) > 1 else ""
            raise RequestError(f"`{name}={tuple(values)}` is not of pixels in [0, 1]{hint}")


def _files(weights: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """Return the weight files: a text may hold several with commas."""
    if weights is None:
        return ()
    if not isinstance(weights, str | Path):
        return tuple(file for one in weights for file in _files(one))
    if Path(weights).exists() or isinstance(weights, Path):
        return (Path(weights),)
    return tuple(Path(part.strip()) for part in weights.split(","))


def _checked_init(init: str | None, *, pretrained: bool, files: Sequence[Path]) -> str:
    given = pretrained or bool(files)
    if pretrained and files:
        raise RequestError("`pretrained` and `weights` exclude each other")
    if init is None:
        return "copy" if given else "independent"
    if init not in INITS:
        raise RequestError(f"`init` {init!r} is unknown; {nearest(init, INITS)}")
    if given and init == "independent":
        raise RequestError("`init='independent'` would throw the weights away; use copy or jitter")
    return init


def _facts(
    architecture: Architecture,
    data: str | None,
    data_dir: str | Path | None,
    size: tuple[int, int] | None,
    *,
    pretrained: bool,
    files: Sequence[Path],
    skip_bad: bool,
) -> dict[str, Any]:
    """Return classes, channels, height, width, mean, std (None where nothing says).

    Also data and class_names ("" and empty where no data set was named), and who says it all, `by`.
    """
    if data is None and (pretrained or files or architecture.is_program):
        unnamed = {"data": "", "class_names": ()}
        if architecture.source == "own":
            nothing = dict.fromkeys(("classes", "channels", "height", "width", "mean", "std"))
            return {**nothing, **unnamed, "by": ""}
        by = f"as {architecture.source} has it for {architecture.name}"
        return {**library_pixels(architecture), **unnamed, "by": by}
    library = library_pixels(architecture) if pretrained and architecture.source != "own" else {}
    if size is None and library:
        size = (library["height"], library["width"])
    described = describe(data or "digits", data_dir=data_dir, size=size, skip_bad=skip_bad)
    facts = {
        **described.pixels.to_json(), **library, "data": described.name, "classes":
        described.classes, "class_names": described.class_names, "by": f"as of {described.name}",
    }  # fmt: skip
    if size is None:
        facts["height"], facts["width"] = _enlarged(facts["height"], facts["width"])
    return facts


def _enlarged(height: int, width: int) -> tuple[int, int]:
    """Return a size that most stems can halve five times, of the same shape where that is sane."""
    if min(height, width) >= _SMALLEST_SIDE:
        return height, width
    scale = _ENLARGED_SIDE / min(height, width)
    sides = [round(side * scale) for side in (height, width)]
    if max(sides) > _LONGEST_SIDE:  # a signal more than an image: `fit` stretches its short side
        sides = [max(side, _ENLARGED_SIDE) for side in (height, width)]
    return sides[0], sides[1]


def _pixels(
    facts: dict[str, Any],
    architecture: Architecture,
    *,
    in_chans: int | None,
    size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Pixels:
    height, width = size or (facts["height"], facts["width"])
    channels = in_chans or facts["channels"]
    if channels is None:
        found = first_convolution(build_on_meta(architecture))
        if found is None:
            raise RequestError(f"{architecture.name} does not say its channels; give `in_chans`")
        channels = found[1].in_channels
    constants = [
        _constant(given, facts[name], channels, facts["channels"])
        for name, given in (("mean", mean), ("std", std))
    ]
    if height is None or None in constants:
        raise RequestError(
            f"{architecture.name} does not say what images its weights expect; give `data`, or "
            "`image_size` with `mean` and `std`"
        )
    return Pixels(channels, height, width, *constants)  # type: ignore[arg-type]


def _constant(
    given: tuple[float, ...] | None, known: tuple[float, ...] | None, channels: int, of: int | None
) -> tuple[float, ...] | None:
    """Return a per-channel constant; a data set's own, averaged, where the channels differ."""
    if given is not None:
        return given * channels if len(given) == 1 else given
    if known is None or channels == of:
        return known
    return (sum(known) / len(known),) * channels


def _assumed(
    facts: dict[str, Any],
    pixels: Pixels,
    *,
    size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[str, ...]:
    """Say which constants nobody stated for weights that were trained elsewhere."""
    options = {
        "`image_size`": (size, f"{pixels.height}x{pixels.width} pixels"),
        "`mean`": (mean, f"mean {','.join(f'{value:.4g}' for value in pixels.mean)}"),
        "`std`": (std, f"std {','.join(f'{value:.4g}' for value in pixels.std)}"),
    }
    open_ones = {option: text for option, (given, text) in options.items() if given is None}
    if not open_ones:
        return ()
    return (
        f"ASSUMED: the weights expect {' and '.join(open_ones.values())}, "
        f"{facts['by']}; if they were trained with others, every number is wrong: state "
        f"{', '.join(open_ones)}.",
    )


def _agreed(num_classes: int | None, named: int) -> int | None:
    if named and num_classes not in (None, named):
        raise RequestError(f"`classes` names {named} classes, but `num_classes` is {num_classes}")
    return num_classes or named or None


def _named_classes(
    card: Card, names: tuple[str, ...], facts: dict[str, Any], *, given: bool
) -> tuple[str, ...]:
    """Return the names of a model's classes: those given, the data set's, or the library's."""
    found = names or facts["class_names"]
    if not found and given and not facts["data"] and card.architecture.source != "own":
        found = library_classes(card.classes)
    return found if len(found) == card.classes else ()


def _wanted_classes(wanted: int | None, name: str) -> int | None:
    if wanted == 0:
        raise RequestError(
            f"the published weights of {name} have no classification head; `num_classes` or "
            "`data` gives it one to train"
        )
    return wanted


def _checked_classes(found: int, wanted: int | None, architecture: Architecture) -> int:
    if found == 1:
        raise RequestError(f"{architecture.name} {ONE_NUMBER}")
    if wanted is not None and found != wanted:
        own = architecture.source == "own"
        advice = "let its factory take num_classes" if own else f"give `num_classes={found}`"
        raise RequestError(
            f"{architecture.name} answers with {found} classes, not {wanted}; {advice}"
        )
    return found


def _found_weights(
    network: nn.Module,
    files: Sequence[Path],
    key: str | None,
    banks: int | None,
    shown: Trace,
    asked: Asked,
) -> Weights:
    """Find the weights of a network; its auxiliary heads, which never answer, may be absent."""
    auxiliary = [
        name
        for name in tensor_names(network)
        if name.lower().startswith("aux") and name not in shown.uses
    ]
    return find_weights(
        network, files, key=key, banks=banks, optional=auxiliary,
        remedy=functools.partial(remedy, asked),
    )  # fmt: skip


def _banks(
    card: Card, count: int, init: str, *, weights: Weights | None, seed: int
) -> list[nn.Module]:
    networks = [_seeded(card, seed, 0)]
    if weights is not None:
        load_weights(networks[0], weights.members[0])
    for bank in range(1, count):
        if init == "independent":
            networks.append(_seeded(card, seed, bank))
        else:
            networks.append(duplicate(networks[0]))
    for network, member in zip(networks, weights.members if weights else (), strict=False):
        load_weights(network, member)
    if init == "jitter":
        for bank, network in enumerate(networks):
            _jitter(network, seeds.generator(seed, Purpose.JITTER, bank))
    return networks


def _seeded(card: Card, seed: int, bank: int) -> nn.Module:
    with started(seeds.derive(seed, Purpose.INIT, bank)):
        library = card.pretrained == LIBRARY
        return build(card.architecture, card.pixels.shape, pretrained=library)


@torch.no_grad()
def _jitter(network: nn.Module, generator: torch.Generator) -> None:
    for parameter in inexact(network):
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
        parameter.add_(JITTER * spread * noise)
