"""The partition of a network into the layers that are sampled (paper, section 3.1).

Every parameter and persistent buffer belongs to exactly one layer, tied tensors to the same one.
`layer`: each weight of a convolution, linear map or matrix product starts a layer, in order of
first use; everything else joins the layer before it. `block`: one residual or transformer block is
one layer. `stage`: the blocks of one parent module are. `model`: the whole network is, L = 1.
`norm`: each normalisation is one layer, and all else is shared, as in Random Normalization
Aggregation (Dong et al. 2022).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rlskit.errors import RequestError
from rlskit.models.trace import Trace, tensor_names
from rlskit.text import nearest

NESTED = ("layer", "block", "stage", "model")
"""Granularities whose layers are each merged from those of the one before."""

GRANULARITIES = (*NESTED, "norm")


@dataclass(frozen=True)
class Layer:
    """A unit that is sampled: its name and the state-dict names of its tensors."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """The L layers of a network in order of first use, and the tensors that all banks share."""

    granularity: str
    layers: tuple[Layer, ...]
    shared: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "granularity": self.granularity,
            "layers": [{"name": layer.name, "tensors": layer.tensors} for layer in self.layers],
            "shared": self.shared,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Partition:
        """Rebuild from `to_json`'s fields.

        Raises:
            RequestError: A field is missing or of another type.
        """
        try:
            layers = tuple(
                Layer(str(layer["name"]), tuple(map(str, layer["tensors"])))
                for layer in fields["layers"]
            )
            return cls(str(fields["granularity"]), layers, tuple(map(str, fields["shared"])))
        except (KeyError, TypeError) as error:
            raise RequestError(f"the checkpoint's partition is unreadable ({error!r})") from error

    def check_covers(self, network: nn.Module) -> None:
        """Require every parameter and persistent buffer of `network` in exactly one place.

        Raises:
            RequestError: One is missing, unknown, or placed twice, or a tied pair is torn.
        """
        names = [name for layer in self.layers for name in layer.tensors] + [*self.shared]
        tensors = tensor_names(network)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice or set(names) != set(tensors):
            odd = sorted(set(names) ^ set(tensors)) or twice
            raise RequestError(f"the partition does not fit the network: {', '.join(odd[:5])}")
        if not self.layers or (tensors and not all(layer.tensors for layer in self.layers)):
            raise RequestError("the partition has an empty layer")
        layer_of = {name: i for i, layer in enumerate(self.layers) for name in layer.tensors}
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            tied = first.setdefault(id(tensor), name)
            if layer_of.get(tied) != layer_of.get(name):
                raise RequestError(f"the partition tears the tied tensors {tied} and {name}")


def partition(
    network: nn.Module, trace: Trace, granularity: str = "layer", bank_only: str | None = None
) -> Partition:
    """Partition a network by what one forward pass of it showed.

    Args:
        network: The network, or one of the same architecture.
        trace: `rlskit.models.trace.trace(network, ...)`.
        granularity: One of `GRANULARITIES`.
        bank_only: A glob; layers whose name does not match are shared by all banks.

    Raises:
        RequestError: Unknown granularity, or no layer matches `bank_only`.
    """
    if granularity not in GRANULARITIES:
        raise RequestError(
            f"`granularity` {granularity!r} is unknown; {nearest(granularity, GRANULARITIES)}"
        )
    if not tensor_names(network):
        raise RequestError(
            f"{type(network).__name__} has no weights, so there is nothing to sample"
        )
    layers = _layers(network, trace)
    if granularity == "model":
        layers = [Layer("model", tuple(tensor_names(network)))]
    elif granularity != "layer":
        layers = _merged(layers, network, _Anatomy(network, trace.weights), granularity)
    shared: tuple[str, ...] = ()
    if granularity == "norm":
        layers, shared = _norms(network, trace)
    if bank_only is None:
        return Partition(granularity, tuple(layers), shared)
    banked = tuple(layer for layer in layers if fnmatchcase(layer.name, bank_only))
    if not banked:
        known = ", ".join(layer.name for layer in layers[:8])
        raise RequestError(
            f"`bank_only` {bank_only!r} matches no layer; the layers are {known}, ..."
        )
    rest = tuple(name for layer in layers if layer not in banked for name in layer.tensors)
    return Partition(granularity, banked, shared + rest)


def _norms(network: nn.Module, trace: Trace) -> tuple[list[Layer], tuple[str, ...]]:
    """Return a layer per normalisation in order of first use, and the names of all else.

    Raises:
        RequestError: There is no normalisation with weights.
    """
    tensors, found, shared = tensor_names(network), dict[str, list[str]](), list[str]()
    norms = {path for path, module in network.named_modules() if _is_norm(module)}
    for name in _placed(network, trace):
        path = name.rpartition(".")[0]
        (found.setdefault(path, []) if path in norms else shared).append(name)
    untied = {id(tensors[name]) for name in shared}
    layers = [
        Layer(path, tuple(names))
        for path, names in found.items()
        if untied.isdisjoint(id(tensors[name]) for name in names)
    ]
    if not layers:
        raise RequestError(
            f"{type(network).__name__} has no normalisation with weights; choose another "
            "`granularity` than norm"
        )
    banked = {name for layer in layers for name in layer.tensors}
    return layers, tuple(name for name in _placed(network, trace) if name not in banked)


def _is_norm(module: nn.Module) -> bool:
    """Say whether a module is a normalisation: by its name, and with a number per channel each."""
    own = [*module.parameters(recurse=False)]
    return "norm" in type(module).__name__.lower() and all(tensor.ndim == 1 for tensor in own)


def _layers(network: nn.Module, trace: Trace) -> list[Layer]:
    """Cut the tensors, in order of first use, before each weight."""
    layers: list[list[str]] = [[]]
    names: list[str] = []
    started: set[int] = set()
    tensors = tensor_names(network)
    for name in _placed(network, trace):
        # The first weight starts layer 0, which also holds what comes before it; a tied weight
        # (the same tensor under another name) stays where its twin is.
        if name in trace.weights and id(tensors[name]) not in started:
            if names:
                layers.append([])
            names.append(name.removesuffix(".weight"))
        started.add(id(tensors[name]))
        layers[-1].append(name)
    names = names or ["model"]
    return [Layer(name, tuple(members)) for name, members in zip(names, layers, strict=True)]


def _placed(network: nn.Module, trace: Trace) -> list[str]:
    """Return all tensor names in order of first use; each the pass did not show follows a relative.

    A buffer follows the parameters of its module; a tensor that only training uses (an auxiliary
    head) follows the tensor registered before it.
    """
    modules: dict[str, list[str]] = {}
    for name in tensor_names(network):
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    buffers = set(tensor_names(network)) - {
        name for name, _ in network.named_parameters(remove_duplicate=False)
    }
    with_parameters = {m for m, names in modules.items() if not buffers.issuperset(names)}
    used = {
        name: None
        for name in trace.uses
        if not (name in buffers and name.rpartition(".")[0] in with_parameters)
    }
    after: dict[str, list[str]] = {}
    previous = ""
    for names in modules.values():
        seen = [name for name in names if name in used]
        for name in names:
            if name not in used:
                after.setdefault(seen[-1] if seen else previous, []).append(name)
        previous = seen[-1] if seen else previous
    order = [*after.get("", ())]
    for name in used:
        order += [name, *after.get(name, ())]
    return order


class _Anatomy:
    """Where the blocks and stages of a network are, told from its classes.

    A unit is a module with several weights that is no mere container. A stage holds nothing but
    units of one class, side by side or in a container (besides, say, a downsampling). A block is an
    outermost unit that is no stage and whose class recurs, or that stands in a container and is no
    larger than those, or has the place of one of those in another stage (the one block of a stage
    is often of a class of its own).
    """

    def __init__(self, network: nn.Module, weights: frozenset[str]) -> None:
        self._weights_below = Counter(
            path for name in weights for path in _prefixes(name.rpartition(".")[0])
        )
        modules = dict(network.named_modules())
        self._recurring = Counter(
            type(module) for path, module in modules.items() if self._is_unit(path, module)
        )
        self.stages = {path for path, module in modules.items() if self._is_stage(path, module)}
        self.stages.discard("")
        recurring = [
            path
            for path, module in modules.items()
            if self._is_unit(path, module)
            and self._recurring[type(module)] > 1
            and path not in self.stages
        ]
        self._largest = max((self._weights_below[path] for path in recurring), default=0)
        self._places = set(map(_without_numbers, recurring))
        self.blocks: set[str] = set()
        self._descend("", network)

    def block(self, name: str) -> str | None:
        """Return the path of the block that the tensor or layer `name` is in."""
        return next((path for path in _prefixes(name) if path in self.blocks), None)

    def stage(self, name: str) -> str:
        """Return the path of the stage that `name` is in: the top-level module's outside stages."""
        block = self.block(name)
        parent = block.rpartition(".")[0] if block is not None else name  # no stage is in a block
        within = [path for path in _prefixes(parent) if path in self.stages]
        if within:
            return within[-1]
        return parent if block is not None and parent else name.split(".")[0]

    def _descend(self, path: str, module: nn.Module) -> None:
        for child_path, child in _children(path, module):
            recurs = self._recurring[type(child)] > 1
            small = self._weights_below[child_path] <= self._largest
            alike = small or _without_numbers(child_path) in self._places
            is_unit = self._is_unit(child_path, child) and child_path not in self.stages
            if is_unit and (recurs or (_is_container(module) and alike)):
                self.blocks.add(child_path)
            else:
                self._descend(child_path, child)

    def _is_unit(self, path: str, module: nn.Module) -> bool:
        return not _is_container(module) and self._weights_below[path] > 1

    def _is_stage(self, path: str, module: nn.Module) -> bool:
        if not self._is_unit(path, module):
            return False
        children = list(_children(path, module))
        weighty = [path for path, _ in children if self._weights_below[path]]
        containers = [list(_children(p, m)) for p, m in children if _is_container(m)]
        side_by_side = len(weighty) > 1 and self._are_one_kind(children)
        return side_by_side or any(map(self._are_one_kind, containers))

    def _are_one_kind(self, elements: list[tuple[str, nn.Module]]) -> bool:
        weighty = [(path, module) for path, module in elements if self._weights_below[path]]
        return len({type(module) for _, module in weighty}) == 1 and all(
            self._is_unit(path, module) and self._recurring[type(module)] > 1
            for path, module in weighty
        )


def _without_numbers(path: str) -> str:
    """Return "layer.#.conv#" for "layer.3.conv1": places that differ by numbers are alike."""
    return re.sub(r"\d+", "#", path)


def _prefixes(path: str) -> list[str]:
    """Return "", "a", "a.b" and "a.b.c" for "a.b.c"."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts) + 1)]


def _children(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    dot = f"{path}." if path else ""
    return [(dot + name, child) for name, child in module.named_children()]


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _merged(
    layers: list[Layer], network: nn.Module, anatomy: _Anatomy, granularity: str
) -> list[Layer]:
    """Merge layers by block or stage; a tensor inside a block goes with it, wherever it is used."""
    tensors = tensor_names(network)
    merged: dict[str, list[str]] = {}
    home: dict[int, str] = {}
    for layer in layers:
        for name in layer.tensors:
            place = name if anatomy.block(name) else layer.name
            unit = anatomy.stage(place)
            if granularity == "block":
                unit = anatomy.block(place) or layer.name
            merged.setdefault(home.setdefault(id(tensors[name]), unit), []).append(name)
    return [Layer(name, tuple(members)) for name, members in merged.items()]
