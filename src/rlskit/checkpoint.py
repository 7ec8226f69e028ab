"""One safetensors file for all subcommands: M state dicts side by side and one JSON string.

Tensors are named `bank{m}.{name}`; a tensor that is tied or shared by all banks is stored once. The
metadata also carries a sha256 over (name, dtype, shape, bytes) of all tensors, because safetensors
has no checksum. A file is untrusted input: it is parsed, checked against its architecture, and
refused with the reason; nothing in it is ever executed or used as a path.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlskit import __version__
from rlskit.errors import RequestError
from rlskit.files import replacing
from rlskit.models.architecture import Architecture, build, build_on_meta, resolve
from rlskit.models.banks import BankedModel, Card
from rlskit.models.partition import Partition
from rlskit.models.trace import tensor_names
from rlskit.pixels import Pixels

FORMAT = "rlskit.checkpoint/1"
_SHOWN = 5


def save(model: BankedModel, path: str | Path, *, force: bool = False) -> str:
    """Write a model to `path`, atomically, and return the sha256 of its tensors.

    Raises:
        RequestError: The file exists and `force` is not given.
    """
    tensors = stored_tensors(model)
    digest = fingerprint(tensors)
    card = model.card
    metadata = {
        "format": FORMAT,
        "architecture": card.architecture.to_json(),
        "banks": model.num_banks,
        "partition": model.partition.to_json(),
        "parameters": _layer_sizes(model),
        "pixels": card.pixels.to_json(),
        "classes": card.classes,
        "defense": {"name": card.defense},
        "data": card.data,
        "pretrained": card.pretrained,
        "training": card.training,
        "versions": {"rlskit": __version__, "torch": torch.__version__},
        "sha256": digest,
    }
    with replacing(Path(path), force=force) as temporary:
        save_file(tensors, temporary, metadata={"rlskit": json.dumps(metadata)})
    return digest


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
    path = Path(path)
    metadata, tensors = _checked(path)
    try:
        card = _card(metadata)
        partition = Partition.from_json(metadata["partition"])
        num_banks = int(metadata["banks"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise RequestError(f"{path}: {error}") from error
        raise RequestError(f"{path}: its metadata is unreadable ({error!r})") from error
    if architecture is not None:
        named = resolve(architecture)
        card.architecture = replace(
            card.architecture, source=named.source, name=named.name, digest=named.digest
        )
    model = _skeleton(path, card, partition, num_banks, tensors)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            tensor.copy_(tensors[name])
    model.path = str(path)
    return model


def inspect(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's metadata, after checking the tensors against their checksum.

    Raises:
        RequestError: The file is missing, damaged or no checkpoint of rlskit's.
    """
    metadata, _ = _checked(Path(path))
    return metadata


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 over (name, dtype, shape, bytes) of the tensors, by order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_tensors(model: BankedModel) -> dict[str, Tensor]:
    """Return the tensors under their names in the file, a tied or shared one once."""
    first_names: dict[int, str] = {}
    for m, bank in enumerate(model.bank_tensors()):
        for name, tensor in bank.items():
            first_names.setdefault(id(tensor), f"bank{m}.{name}")
    tensors = {id(t): t for bank in model.bank_tensors() for t in bank.values()}
    return {name: tensors[key].detach().contiguous() for key, name in first_names.items()}


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    metadata, tensors = _read(path)
    if fingerprint(tensors) != metadata.get("sha256"):
        raise RequestError(f"{path} is damaged: its tensors do not match their checksum")
    return metadata, tensors


def _layer_sizes(model: BankedModel) -> list[int]:
    """Return the number of parameters of each layer, in one bank."""
    parameters = dict(model.banks[0].named_parameters())  # tied ones once
    return [
        sum(parameters[name].numel() for name in layer.tensors if name in parameters)
        for layer in model.partition.layers
    ]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path}; `rlskit convert` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("rlskit")
            if header is None:
                raise RequestError(
                    f"{path} holds plain weights; `rlskit convert NAME --weights {path}` reads them"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(header)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RequestError(f"{path} is not a readable safetensors file ({error})") from error
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path}: its metadata is no JSON ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise RequestError(f"{path} is not of the format {FORMAT}")
    return metadata, tensors


def _card(metadata: dict[str, Any]) -> Card:
    return Card(
        architecture=Architecture.from_json(metadata["architecture"]),
        pixels=Pixels.from_json(metadata["pixels"]),
        classes=int(metadata["classes"]),
        defense=str(metadata["defense"]["name"]),
        data=str(metadata["data"]),
        training=[dict(record) for record in metadata["training"]],
        pretrained=str(metadata["pretrained"]),
    )


def _skeleton(
    path: Path, card: Card, partition: Partition, num_banks: int, tensors: dict[str, Tensor]
) -> BankedModel:
    """Build the model that the tensors are to fill, after comparing their shapes on meta."""
    meta = build_on_meta(card.architecture)
    _check_shapes(path, BankedModel(_copies(meta, num_banks), partition, card), tensors)
    with torch.random.fork_rng(devices=[]):
        network = build(card.architecture)
    return BankedModel(_copies(network, num_banks), partition, card)


def _copies(network: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    if not 1 <= count <= 1000:
        raise RequestError(f"a checkpoint cannot have {count} banks")
    return [network, *(copy.deepcopy(network) for _ in range(count - 1))]


def _check_shapes(path: Path, model: BankedModel, tensors: dict[str, Tensor]) -> None:
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in stored_tensors(model).items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    odd = [
        name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)
    ]
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise RequestError(
            f"{path} does not fit its architecture {model.card.architecture.label}: "
            f"{', '.join(odd[:_SHOWN])}{more}"
        )


def export(
    model: BankedModel, plan: Tensor | Sequence[int], path: str | Path, *, force: bool = False
) -> None:
    """Write the sampled model of `plan` as an ordinary state dict that its library loads strictly.

    Tied tensors are written under each of their names, as `state_dict()` gives them.

    Raises:
        RequestError: The plan does not fit, or the file exists and `force` is not given.
    """
    chosen = {
        name: tensor.detach().clone()
        for name, tensor in model.tensors(torch.as_tensor(plan)).items()
    }
    order = [name for name in tensor_names(model.banks[0]) if name in chosen]
    with replacing(Path(path), force=force) as temporary:
        save_file({name: chosen[name].contiguous() for name in order}, temporary)
