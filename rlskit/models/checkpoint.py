"""One safetensors file for all subcommands: M state dicts side by side and one JSON string.

Tensors are named `bank{m}.{name}`; a tensor that is tied or shared by all banks is stored once. The
metadata also carries a sha256 over (name, dtype, shape, bytes) of all tensors, because safetensors
has no checksum. A file is untrusted input: it is parsed, checked against its architecture, and
refused with the reason; nothing in it is ever executed or used as a path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlskit import __version__
from rlskit.arguments import in_own_modes
from rlskit.errors import RequestError
from rlskit.models.architecture import MEMORY, Architecture, resolve, unsaveable
from rlskit.models.banks import BankedModel, Card
from rlskit.models.building import build, build_on_meta
from rlskit.models.copying import duplicate
from rlskit.models.outputs import check_outputs
from rlskit.models.own import heard
from rlskit.models.partition import Partition
from rlskit.models.streams import kept, sources_of
from rlskit.models.trace import tensor_names, trace
from rlskit.models.trial import check_kept_answers, check_rebuilt, kept_answers
from rlskit.models.weightfile import format_of
from rlskit.pixels import Pixels
from rlskit.storage.files import CHECKSUM, parse_json, write_tensors
from rlskit.storage.files import fingerprint as fingerprint

FORMAT = "rlskit.checkpoint/1"

DIGESTED = "tensors and definition"
"""What the sha256 in a file is of; where it does not say so, of the tensors alone."""

_SHOWN = 5
_LARGEST_SIDE, _MOST_PIXELS = 10_000, 2**25  # 134 MB for each image
_MOST_LISTED = 10_000  # names that are compared one by one in any case
_ALWAYS_ALLOWED = 4096  # channels of a network that has no tensor of that size


def save(model: BankedModel, path: str | Path, *, force: bool = False) -> str:
    """Write a model to `path`, atomically, and return its sha256 (see `digest_of`).

    Raises:
        RequestError: The file exists and `force` is not given, or the model is one that no file
            can hold.
    """
    check_saveable(model)
    tensors = stored_tensors(model)
    card = model.card
    metadata = {
        "format": FORMAT,
        **_definition(card, model.partition, model.num_banks),
        "parameters": _layer_sizes(model),
        "data": card.data,
        "pretrained": card.pretrained,
        "assumed": card.assumed,
        "notes": card.notes,
        "training": card.training,
        **({"answers": kept_answers(model)} if card.architecture.source == "own" else {}),
        "versions": {"rlskit": __version__, "torch": torch.__version__},
        "sha256_of": DIGESTED,
        "sha256": CHECKSUM,
    }
    with ThreadPoolExecutor(1) as beside:  # hashing takes as long as writing
        digest = beside.submit(digest_of, model)
        write_tensors(
            Path(path), tensors, {"rlskit": json.dumps(metadata)},
            force=force, checksum=digest.result,
        )  # fmt: skip
        return digest.result()


def check_saveable(model: BankedModel) -> None:
    """Require a model that can be built again.

    Raises:
        RequestError: It is a module in memory.
    """
    architecture = model.card.architecture
    if architecture.source == MEMORY:
        raise RequestError(f"the model is {unsaveable(architecture.name)}")


@in_own_modes()
def load(path: str | Path, *, architecture: str | None = None) -> BankedModel:
    """Read a model from a checkpoint that `save` wrote.

    Args:
        path: The file.
        architecture: For a model of one's own code that this machine has not seen, the factory
            that builds it, as `FILE.py:factory`.

    Raises:
        RequestError: The file is missing, damaged, no checkpoint of rlskit's, or does not fit its
            architecture.
    """
    metadata, tensors, card, partition = _checked(Path(path))
    num_banks = int(metadata["banks"])
    try:
        if architecture is not None:
            named = resolve(architecture)
            card.architecture = replace(
                card.architecture, source=named.source, name=named.name, digest=named.digest
            )
        _check_fit(card, partition, num_banks, tensors)
        with kept(sources_of()):
            network = build(card.architecture, card.pixels.shape)
        model = BankedModel(_copies(network, num_banks), partition, card)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            tensor.copy_(tensors[name])
    _check_own(model, metadata, Path(path))
    model.path = str(path)
    return model


def inspect(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's metadata, after checking the tensors against their checksum.

    The architecture itself is not built, so one's own code need not be here.

    Raises:
        RequestError: The file is missing, damaged or no checkpoint of rlskit's.
    """
    metadata, *_ = _checked(Path(path))
    return metadata


def digest_of_file(path: str | Path) -> str:
    """Return what `digest_of` says of the model in a checkpoint, without building it.

    Raises:
        RequestError: The file is missing, damaged or no checkpoint of rlskit's.
    """
    metadata, tensors, card, partition = _checked(Path(path))
    return _digest(_definition(card, partition, int(metadata["banks"])), tensors)


def export(
    model: BankedModel, plan: Tensor | Sequence[int], path: str | Path, *, force: bool = False
) -> None:
    """Write the sampled model of `plan` as an ordinary state dict that its library loads strictly.

    Tied tensors are written under each of their names, as `state_dict()` gives them.

    Raises:
        RequestError: The plan does not fit, or the file exists and `force` is not given.
    """
    chosen = model.tensors(torch.as_tensor(plan))
    write_tensors(Path(path), chosen, {"format": "pt"}, force=force)


def digest_of(model: BankedModel) -> str:
    """Return the sha256 of all that a model's answers come from.

    That is its tensors and what its card says of architecture, partition, pixels, classes and
    defense: two models that differ in mean and std alone differ in it.
    """
    definition = _definition(model.card, model.partition, model.num_banks)
    return _digest(definition, stored_tensors(model))


def _digest(definition: Mapping[str, Any], tensors: dict[str, Tensor]) -> str:
    text = json.dumps(definition, sort_keys=True)
    return hashlib.sha256(f"{text}\n{fingerprint(tensors)}".encode()).hexdigest()


def _definition(card: Card, partition: Partition, banks: int) -> dict[str, Any]:
    """Return what decides a model's answers besides its tensors, as JSON values."""
    return {
        "architecture": card.architecture.to_json(),
        "banks": banks,
        "partition": partition.to_json(),
        "pixels": Pixels.from_json(card.pixels.to_json()).to_json(),
        "classes": card.classes,
        "class_names": card.class_names,
        "defense": {
            "name": card.defense,
            "bank_probs": [float(p) for p in card.bank_probs],
            "settings": {name: float(value) for name, value in card.settings.items()},
        },
        "outputs": {"kind": card.outputs, "key": card.output_key},
    }


def stored_tensors(model: BankedModel) -> dict[str, Tensor]:
    """Return the model's own tensors under their names in the file, a tied or shared one once."""
    stored: dict[int, tuple[str, Tensor]] = {}
    for m, bank in enumerate(model.bank_tensors()):
        for name, tensor in bank.items():
            stored.setdefault(id(tensor), (f"bank{m}.{name}", tensor))
    return dict(stored.values())


def _layer_sizes(model: BankedModel) -> list[int]:
    """Return the number of parameters of each layer, in one bank."""
    parameters = dict(model.banks[0].named_parameters())  # tied ones once
    return [
        sum(parameters[name].numel() for name in layer.tensors if name in parameters)
        for layer in model.partition.layers
    ]


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Card, Partition]:
    """Read a file, and require that what it says is sane and agrees with its checksum."""
    metadata, tensors = _read(path)
    try:
        card, partition, banks = _parsed(metadata, tensors)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    if metadata.get("sha256_of") == DIGESTED:
        found = _digest(_definition(card, partition, banks), tensors)
    else:  # before 0.2 it was of the tensors alone
        found = fingerprint(tensors)
    if found != metadata.get("sha256"):
        raise RequestError(f"{path} is damaged: its contents do not match their checksum")
    return metadata, tensors, card, partition


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path}; `rlskit.convert` makes one")
    plain = f"`rlskit.convert(name, weights={str(path)!r})` makes a checkpoint of weights"
    if format_of(path) != "safetensors":
        raise RequestError(f"{path} is a PyTorch file or another archive, no checkpoint; {plain}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("rlskit")
            if header is None:
                raise RequestError(f"{path} holds plain weights; {plain}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except RequestError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"{path} is not a readable safetensors file ({error})") from error
    try:
        metadata = parse_json(header)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: its metadata is no JSON ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise RequestError(f"{path} is not of the format {FORMAT}")
    return metadata, tensors


def _parsed(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Card, Partition, int]:
    """Read the card, the partition and M from metadata that may come from anyone."""
    try:
        card = _card(metadata)
        partition = Partition.from_json(metadata["partition"])
        num_banks = int(metadata["banks"])
        sizes = [int(size) for size in metadata["parameters"]]
        dict(metadata["versions"])
        [float(answer) for answer in metadata.get("answers", ())]
    except RequestError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RequestError(f"its metadata is unreadable ({error!r})") from error
    _check_reason(card, tensors)
    if len(sizes) != len(partition.layers):
        raise RequestError(f"it counts the parameters of {len(sizes)} layers, not of its own")
    with_tensors = {name.partition(".")[0] for name in tensors}
    if num_banks != len(with_tensors) or with_tensors != {f"bank{m}" for m in range(num_banks)}:
        raise RequestError(f"it says {num_banks} banks, but has tensors of {len(with_tensors)}")
    return card, partition, num_banks


def _check_reason(card: Card, tensors: dict[str, Tensor]) -> None:
    """Require sizes that a network with these tensors can have, before it is built.

    Numbers of classes and channels are sizes of some tensor.
    """
    largest = max([_ALWAYS_ALLOWED, *(size for t in tensors.values() for size in t.shape)])
    kwargs, shape = card.architecture.kwargs, card.pixels.shape
    sizes = [kwargs[name] for name in ("img_size", "input_size") if name in kwargs]
    sizes += [(kwargs["image_size"],) * 2] if "image_size" in kwargs else []
    for height, width in [shape[1:], *sizes]:
        channels = max(shape[0], 1)
        if max(height, width) > _LARGEST_SIDE or channels * height * width > _MOST_PIXELS:
            raise RequestError(f"it wants images of {height}x{width} pixels, beyond reason")
    counts = (card.classes, kwargs.get("num_classes"), kwargs.get("in_chans"))
    for count in (*counts, card.architecture.in_chans, shape[0]):
        if count is not None and not 0 < count <= largest:
            raise RequestError(f"it speaks of {count} classes or channels, beyond reason")
    if card.class_names and len(card.class_names) != card.classes:
        raise RequestError(f"it names {len(card.class_names)} classes of {card.classes}")


def _card(metadata: dict[str, Any]) -> Card:
    return Card(
        architecture=Architecture.from_json(metadata["architecture"]),
        pixels=Pixels.from_json(metadata["pixels"]),
        classes=int(metadata["classes"]),
        defense=str(metadata["defense"]["name"]),
        bank_probs=tuple(map(float, metadata["defense"].get("bank_probs", ()))),
        settings={
            str(name): float(value)
            for name, value in metadata["defense"].get("settings", {}).items()
        },
        data=str(metadata["data"]),
        training=[_record(record) for record in metadata["training"]],
        pretrained=str(metadata["pretrained"]),
        outputs=_outputs(metadata)["kind"],
        output_key=_outputs(metadata)["key"],
        **{
            name: tuple(map(str, metadata.get(name, ())))
            for name in ("class_names", "assumed", "notes")
        },
    )


def _outputs(metadata: dict[str, Any]) -> dict[str, str]:
    """Return what the network answers with; older files do not say."""
    found = metadata.get("outputs", {})
    kind, key = (str(found.get(name, "")) for name in ("kind", "key"))
    check_outputs(kind)
    return {"kind": kind, "key": key}


def _record(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a training record whose names of classes, which are compared, are names."""
    names = (
        {"class_names": list(map(str, fields["class_names"]))} if "class_names" in fields else {}
    )
    return {**fields, **names}


def _check_fit(
    card: Card, partition: Partition, num_banks: int, tensors: dict[str, Tensor]
) -> None:
    """Compare everything with one network on meta, before memory and time are spent on M."""
    meta = build_on_meta(card.architecture, card.pixels.shape)
    partition.check_covers(meta)
    own: dict[int, tuple[str, Tensor]] = {}
    shared = set(partition.shared)
    for name, tensor in tensor_names(meta).items():
        own.setdefault(id(tensor), (name, tensor))  # a tied one under its first name
    label = card.architecture.label
    count = len(own) + (num_banks - 1) * sum(name not in shared for name, _ in own.values())
    if count > _MOST_LISTED and count > 2 * len(tensors):
        raise RequestError(
            f"it has {len(tensors)} tensors, too few for {num_banks} banks of {label}"
        )
    wanted = {
        f"bank{m}.{name}": (tensor.shape, tensor.dtype)
        for m in range(num_banks)
        for name, tensor in own.values()
        if m == 0 or name not in shared
    }
    _check_shapes(wanted, tensors, label)
    with heard():
        classes = trace(meta, card.pixels.shape, key=card.output_key).output[1]
    if classes != card.classes:
        raise RequestError(f"it says {card.classes} classes, but {label} has {classes}")


def _check_own(model: BankedModel, metadata: dict[str, Any], path: Path) -> None:
    """Require that one's own code still builds the network that was saved."""
    if model.card.architecture.source != "own":
        return
    try:
        if "answers" in metadata:
            check_kept_answers(model, metadata["answers"])
        else:  # written before there were any
            check_rebuilt(model.card, model.partition)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def _copies(network: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    return [network, *(duplicate(network) for _ in range(count - 1))]


def _check_shapes(
    wanted: Mapping[str, tuple[torch.Size, torch.dtype]], tensors: dict[str, Tensor], label: str
) -> None:
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    odd = [
        name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)
    ]
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise RequestError(
            f"it does not fit its architecture {label}: {', '.join(odd[:_SHOWN])}{more}"
        )
