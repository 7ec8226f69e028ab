"""Any timm, torchvision or own network -> a model with M banks of its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.data import describe
from rlskit.defenses import DEFENSES, check_effect
from rlskit.defenses.defense import bank_zero
from rlskit.errors import RequestError
from rlskit.models.architecture import Architecture, resolve
from rlskit.models.banks import BankedModel, Card
from rlskit.models.building import build, build_on_meta, configure
from rlskit.models.outputs import check_outputs, kind_of
from rlskit.models.partition import partition
from rlskit.models.published import library_pixels
from rlskit.models.stem import first_convolution
from rlskit.models.trace import trace
from rlskit.models.weights import load_weights, read_weights
from rlskit.pixels import Pixels

INITS = ("independent", "copy", "jitter")
JITTER = 0.01
"""Noise of `--init jitter`, relative to each tensor's own standard deviation."""

_SMALLEST_SIDE, _ENLARGED_SIDE = 28, 32  # most stems halve the image five times


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
    image_size: int | None = None,
    small_images: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    init: str | None = None,
    outputs: str = "",
    output_key: str = "",
    seed: int = 0,
) -> BankedModel:
    """Build M networks of one architecture and partition them into the layers that are sampled.

    Args:
        name: A timm or torchvision name, `timm:NAME`, `torchvision:NAME`, `FILE.py:factory` or
            `package.module:factory`.
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
        image_size: Height and width in pixels, instead of the data set's.
        small_images: 3x3 stem without max-pool; one linear layer as VGG's head.
        mean: Per-channel mean in [0, 1]; by default the library's for pretrained weights, else the
            data set's.
        std: Likewise.
        pretrained: Start every bank from the library's weights.
        weights: Start every bank from this file.
        init: `independent` seeds per bank (the default without weights), `copy`, or `jitter`:
            copies with a little noise.
        outputs: What the network answers with, one of `rlskit.models.outputs.OUTPUTS`; by default
            what its last step or its answers show.
        output_key: Where it answers with several tensors, the key or place of the one that holds
            the classes, as `logits`, `0` or `out.logits`; by default the first `[B, classes]`.
        seed: Seeds the initialisation.

    Raises:
        RequestError: A name, file or option is wrong, or they do not fit together.
        RunError: Pretrained weights could not be downloaded.
    """
    if defense not in DEFENSES:
        raise RequestError(f"--defense {defense!r} is unknown; it is one of {', '.join(DEFENSES)}")
    _check_counts(num_classes=num_classes, in_chans=in_chans, image_size=image_size)
    check_outputs(outputs)
    banks = _checked_banks(banks, defense)
    if bank_probs and defense != "rls":
        raise RequestError(f"--bank-probs is for --defense rls, not {defense}")
    init = _checked_init(init, pretrained=pretrained, weights=weights)
    architecture = resolve(name)
    if pretrained and architecture.source == "own":
        raise RequestError(f"--pretrained: no library has weights of {name}; give --weights FILE")
    facts = _facts(architecture, data, data_dir, image_size, pretrained=pretrained, weights=weights)
    pixels = _pixels(facts, architecture, in_chans=in_chans, side=image_size, mean=mean, std=std)
    wanted = _wanted_classes(num_classes or facts["classes"], name)
    architecture = configure(
        architecture,
        classes=wanted,
        channels=pixels.channels,
        image_size=(pixels.height, pixels.width),
        small_images=small_images,
        pretrained=pretrained,
    )
    on_meta = build_on_meta(architecture)  # what is wrong shows before time is spent on weights
    shown = trace(on_meta, pixels.shape, key=output_key, classes=wanted)
    card = Card(
        architecture=architecture,
        pixels=pixels,
        classes=_checked_classes(shown.output[1], wanted, architecture),
        defense=defense,
        bank_probs=bank_probs,
        settings={**DEFENSES[defense].settings, **(settings or {})},
        data=facts["data"],
        pretrained="library" if pretrained else Path(weights).name if weights else "",
        outputs=outputs,
        output_key=shown.key,
    )
    parts = partition(on_meta, shown, granularity or DEFENSES[defense].granularity, bank_only)
    networks = _banks(architecture, banks, init, pretrained=pretrained, weights=weights, seed=seed)
    model = BankedModel(networks, parts, card)
    check_effect(model)
    card.outputs = outputs or _shown_outputs(model)
    return model


def _shown_outputs(model: BankedModel) -> str:
    """Return what the first bank's answers to random images show themselves to be."""
    draw = model.sampled(torch.zeros(model.num_layers, dtype=torch.long))
    images = torch.rand(2, *model.card.pixels.shape, generator=torch.Generator().manual_seed(0))
    inputs = draw.normalize(images).to(draw.reading.dtype)
    with torch.random.fork_rng(devices=[]):
        return kind_of(draw.network, inputs, draw.reading.key)


def _check_counts(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def _checked_banks(banks: int | None, defense: str) -> int:
    banks = DEFENSES[defense].banks if banks is None else banks
    if banks < 1:
        raise RequestError(f"--banks must be at least 1, not {banks}")
    if DEFENSES[defense].plan is bank_zero and banks != 1:
        raise RequestError(f"--defense {defense} has 1 bank, not {banks}")
    return banks


def _checked_init(init: str | None, *, pretrained: bool, weights: str | Path | None) -> str:
    given = pretrained or weights is not None
    if pretrained and weights is not None:
        raise RequestError("--pretrained and --weights exclude each other")
    if init is None:
        return "copy" if given else "independent"
    if init not in INITS:
        raise RequestError(f"--init {init!r} is unknown; it is one of {', '.join(INITS)}")
    if given and init == "independent":
        raise RequestError("--init independent would throw the weights away; use copy or jitter")
    return init


def _facts(
    architecture: Architecture,
    data: str | None,
    data_dir: str | Path | None,
    image_size: int | None,
    *,
    pretrained: bool,
    weights: str | Path | None,
) -> dict[str, Any]:
    """Return classes, channels, height, width, mean, std (None where nothing says) and data."""
    given = pretrained or weights is not None
    if data is None and given:
        if architecture.source == "own":
            nothing = dict.fromkeys(("classes", "channels", "height", "width", "mean", "std"))
            return {**nothing, "data": ""}
        return {**library_pixels(architecture), "data": ""}
    library = library_pixels(architecture) if pretrained else {}
    size = (library["height"], library["width"]) if library else None
    if image_size is not None:
        size = (image_size, image_size)
    described = describe(data or "digits", data_dir=data_dir, size=size)
    pixels = described.pixels
    facts = {**pixels.to_json(), "data": described.name, **library, "classes": described.classes}
    if min(pixels.height, pixels.width) < _SMALLEST_SIDE and not library:
        facts |= {"height": _ENLARGED_SIDE, "width": _ENLARGED_SIDE}
    return facts


def _pixels(
    facts: dict[str, Any],
    architecture: Architecture,
    *,
    in_chans: int | None,
    side: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Pixels:
    height, width = (side, side) if side is not None else (facts["height"], facts["width"])
    channels = in_chans or facts["channels"]
    if channels is None:
        found = first_convolution(build_on_meta(architecture))
        if found is None:
            raise RequestError(f"{architecture.name} does not say its channels; give --in-chans")
        channels = found[1].in_channels
    constants = [
        _constant(given, facts[name], channels, facts["channels"])
        for name, given in (("mean", mean), ("std", std))
    ]
    if height is None or None in constants:
        raise RequestError(
            f"{architecture.name} does not say what images its weights expect; give --data, or "
            "--image-size with --mean and --std"
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


def _wanted_classes(wanted: int | None, name: str) -> int | None:
    if wanted == 0:
        raise RequestError(
            f"the published weights of {name} have no classification head; --num-classes or "
            "--data gives it one to train"
        )
    return wanted


def _checked_classes(found: int, wanted: int | None, architecture: Architecture) -> int:
    if wanted is not None and found != wanted:
        own = architecture.source == "own"
        advice = "let its factory take num_classes" if own else f"give --num-classes {found}"
        raise RequestError(
            f"{architecture.name} answers with {found} classes, not {wanted}; {advice}"
        )
    return found


def _banks(
    architecture: Architecture,
    count: int,
    init: str,
    *,
    pretrained: bool,
    weights: str | Path | None,
    seed: int,
) -> list[nn.Module]:
    first = _seeded(architecture, seed, 0, pretrained=pretrained)
    if weights is not None:
        load_weights(first, read_weights(weights), str(weights))
    networks = [first]
    for bank in range(1, count):
        if init == "independent":
            networks.append(_seeded(architecture, seed, bank))
        else:
            networks.append(copy.deepcopy(first))
    if init == "jitter":
        for bank, network in enumerate(networks):
            _jitter(network, seeds.generator(seed, "jitter", bank))
    return networks


def _seeded(
    architecture: Architecture, seed: int, bank: int, *, pretrained: bool = False
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.derive(seed, "init", bank))  # no GPU's
        return build(architecture, pretrained=pretrained)


@torch.no_grad()
def _jitter(network: nn.Module, generator: torch.Generator) -> None:
    for parameter in filter(Tensor.is_floating_point, network.parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
        parameter.add_(JITTER * spread * noise)
