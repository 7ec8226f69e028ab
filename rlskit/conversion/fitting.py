"""Which tensors of a weight file are which of a network's: names, prefixes and shapes.

A file names its tensors as the object did that was saved: `module.` before each by DataParallel,
`_orig_mod.` by torch.compile, `model.` by Lightning, anything by a wrapper. A prefix is taken off
where, and only where, the names fit the network then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.models.trace import tensor_names

_SHOWN = 5
_TRIED_PREFIXES = 8
_DEEPEST = 5

_COUNTERS = ("n_averaged", "num_updates", "decay", "total_ops", "total_params")
"""Last part of the names that averaging and profiling leave in a state dict."""

_BESIDE = re.compile(r"(^|\.)(aux|loss|criterion|metric)", re.IGNORECASE)
"""Names of what stands beside a network in training, and has no part in its answers."""

_TRANSLATIONS = (
    (r"\.(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)", ""),  # of parts
    (r"(norm|relu|conv)\.(\d)\.", r"\1\2."),  # the DenseNets that torchvision publishes
    (r"\.linear_1\.", ".0."), (r"\.linear_2\.", ".3."),  # its vision transformers
    (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"),
    (r"weight_g$", "parametrizations.weight.original0"),
    (r"weight_v$", "parametrizations.weight.original1"),
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
)  # fmt: skip
"""Names that files have -> names of the same tensor in a network of today."""


@dataclass(frozen=True, eq=False)
class StateDict:
    """Tensors by name somewhere in a file, and the keys that lead there, joined by dots."""

    key: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a network needs of a file.

    Attributes:
        tensors: Every parameter and persistent buffer by name, of any device.
        optional: Names that may be absent, as they have no part in the network's answers.
    """

    tensors: Mapping[str, Tensor]
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: nn.Module, optional: Collection[str] = ()) -> Wanted:
        """Return what a network needs; counters of batches are always optional."""
        tensors = tensor_names(network)
        counters = {name for name in tensors if name.endswith("num_batches_tracked")}
        return cls(tensors, frozenset(optional) | counters)

    @cached_property
    def prefix(self) -> str:
        """What every name begins with, up to a dot."""
        parts = [name.split(".")[:-1] for name in self.tensors]
        shared = []
        for level in zip(*parts, strict=False):
            if len(set(level)) > 1:
                break
            shared.append(level[0])
        return "".join(f"{part}." for part in shared)


@dataclass(frozen=True, eq=False)
class Fit:
    """A state dict, or the part of it below a prefix, held against a network.

    Attributes:
        key: The keys and the prefix that lead to it, joined by dots.
        tensors: The tensors that have a place, by the network's names.
        missing: Names that the network wants and the file lacks.
        absent: Optional names that the file lacks.
        reshaped: Names of another shape.
        integers: Names with integers where the network has floating-point numbers.
        beside: Names without a place that have no part in a network's answers.
        unexpected: Names below the prefix without a place in the network.
        outside: Tensors outside of the prefix, by the file's names.
    """

    key: str
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    absent: tuple[str, ...]
    reshaped: tuple[str, ...]
    integers: tuple[str, ...]
    beside: tuple[str, ...]
    unexpected: tuple[str, ...]
    outside: Mapping[str, Tensor]

    @property
    def whole(self) -> bool:
        """Whether the network gets all it needs from it."""
        return not (self.missing or self.reshaped or self.integers or self.unexpected)


def state_dicts(content: Any, key: str = "", depth: int = 0) -> Iterator[StateDict]:
    """Yield every dict of tensors in what a file holds, the outermost first."""
    if depth > _DEEPEST or not isinstance(content, dict | list):
        return
    items = content.items() if isinstance(content, dict) else enumerate(content)
    named = [(str(name), value) for name, value in items]
    if isinstance(content, dict):
        tensors = {name: v for name, v in content.items() if isinstance(v, Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            yield StateDict(key, tensors)
    for name, value in named:
        yield from state_dicts(value, f"{key}.{name}" if key else name, depth + 1)


def fits(state: StateDict, wanted: Wanted) -> list[Fit]:
    """Return how a state dict fits with each prefix that some of its names speak for.

    The best come first.
    """
    inner = {name.removeprefix(wanted.prefix) for name in wanted.tensors}
    votes: Counter[str] = Counter()
    for name in state.tensors:
        for prefix, rest in _cuts(name):
            votes[prefix] += any(one in inner for one in (rest, *_translated(rest)))
    tried = [prefix for prefix, count in votes.most_common(_TRIED_PREFIXES) if count]
    found = [_fit(state, wanted, prefix) for prefix in tried or [""]]
    return sorted(found, key=lambda fit: (not fit.whole, -len(fit.tensors)))


def same(first: Fit, second: Fit) -> bool:
    """Whether two fits give a network the same tensors."""
    return first.tensors.keys() == second.tensors.keys() and all(
        torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items()
    )


def listed(names: Collection[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(list(names)[:_SHOWN]) + more


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield every prefix of a name that ends at a dot, the empty one first, and the rest."""
    yield "", name
    for match in re.finditer(r"\.", name):
        yield name[: match.end()], name[match.end() :]


def _translated(name: str) -> Iterator[str]:
    for pattern, replacement in _TRANSLATIONS:
        found = re.sub(pattern, replacement, name)
        if found != name:
            yield found


def _fit(state: StateDict, wanted: Wanted, prefix: str) -> Fit:
    placed: dict[str, Tensor] = {}
    beside: list[str] = []
    unexpected: list[str] = []
    outside: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        inside = name.startswith(prefix)
        place = _place(name.removeprefix(prefix), wanted, placed) if inside else None
        if place is not None:
            placed[place] = tensor
        elif name.rpartition(".")[2] in _COUNTERS or _BESIDE.search(name):
            beside.append(name)
        elif inside:
            unexpected.append(name)
        else:
            outside[name] = tensor
    given = {id(wanted.tensors[name]) for name in placed}  # a tied one under any of its names
    lacking = [name for name, tensor in wanted.tensors.items() if id(tensor) not in given]
    return Fit(
        key=".".join(part for part in (state.key, prefix.rstrip(".")) if part),
        tensors=placed,
        missing=tuple(name for name in lacking if name not in wanted.optional),
        absent=tuple(name for name in lacking if name in wanted.optional),
        reshaped=tuple(n for n, t in placed.items() if t.shape != wanted.tensors[n].shape),
        integers=tuple(
            name
            for name, tensor in placed.items()
            if wanted.tensors[name].is_floating_point() and not tensor.is_floating_point()
        ),
        beside=tuple(beside),
        unexpected=tuple(unexpected),
        outside=outside,
    )


def _place(name: str, wanted: Wanted, taken: Collection[str]) -> str | None:
    """Return the network's name for a name of the file without its prefix, or None."""
    for candidate in (name, *_translated(name)):
        full = wanted.prefix + candidate
        for known in (candidate, full):
            if known in wanted.tensors and known not in taken:
                return known
    return None
