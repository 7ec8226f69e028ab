"""Weights from elsewhere: find in files what fits a network, and copy it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.conversion.fitting import Fit, StateDict, Wanted, fits, listed, same, state_dicts
from rlskit.errors import RequestError
from rlskit.models.trace import tensor_names
from rlskit.models.weightfile import read_content

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)|ema($|[._])", re.IGNORECASE)
"""Keys of weights that are means over the steps of a training."""

Remedy = Callable[[list[StateDict]], str]
"""Says which options would make one of some state dicts fit, or ""."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What was found for the banks of a model.

    Attributes:
        members: Tensors by the network's names: of one network, or of one for each bank.
        source: The files' names.
        notes: What a user must know of the choice, a sentence each.
    """

    members: tuple[Mapping[str, Tensor], ...]
    source: str
    notes: tuple[str, ...]

    @property
    def count(self) -> int | None:
        """Number of banks that they are for; None for any."""
        return len(self.members) if len(self.members) > 1 else None


def find_weights(
    network: nn.Module,
    files: Sequence[Path],
    *,
    key: str | None = None,
    banks: int | None = None,
    optional: Sequence[str] = (),
    remedy: Remedy = lambda _: "",
) -> Weights:
    """Find the weights of a network in one file, or of its banks in several files or members.

    Args:
        network: Of any device; it is not changed.
        files: One file, or one for each bank.
        key: The part of the file to take, as `state_dict_ema` or `a.b`; with commas one per bank.
        banks: Number of banks, or None for as many as the files have members.
        optional: Names of tensors that the files may lack.
        remedy: Asked what would make a file fit that does not.

    Raises:
        RequestError: A file is no weight file, does not fit, or leaves a choice that `key` makes.
    """
    wanted = Wanted.of(network, optional)
    kind = type(network).__name__
    if len(files) > 1:
        if banks not in (None, len(files)):
            raise RequestError(
                f"`weights` names {len(files)} files for {_banks(banks)}; name one each"
            )
        each = [_chosen(path, wanted, kind, key, 1, remedy) for path in files]
        chosen = [fits[0] for fits, _ in each]
        notes = [note for _, said in each for note in said]
    else:
        chosen, notes = _chosen(files[0], wanted, kind, key, banks, remedy)
    names = ", ".join(path.name for path in files)
    return Weights(tuple(fit.tensors for fit in chosen), names, tuple(dict.fromkeys(notes)))


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a member of `Weights` into a network, in place."""
    own = tensor_names(network)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _chosen(
    path: Path, wanted: Wanted, kind: str, key: str | None, banks: int | None, remedy: Remedy
) -> tuple[list[Fit], list[str]]:
    """Return one fit, or one for each bank, and what must be said of them."""
    content = read_content(path)
    states = list(state_dicts(content))
    if not states:
        raise RequestError(f"{path} holds no state dict; save a network's state_dict() in it")
    found = [fit for state in states for fit in fits(state, wanted)]
    _check_values(path, found)
    if key is None:
        whole = _distinct([fit for fit in found if fit.whole])
        if not whole:
            raise _misfit(path, kind, _nearest(found), wanted, remedy(states))
        chosen = _only(path, whole, banks)
    else:
        chosen = [
            _named(path, one, found, kind, wanted, lambda: remedy(states)) for one in key.split(",")
        ]
        if len(chosen) > 1 and banks not in (None, len(chosen)):
            raise RequestError(f"`weights_key` names {len(chosen)} parts for {_banks(banks)}")
    _check_tied(path, chosen, wanted)
    if key is None:
        _check_outside(path, chosen, kind)
        used = {fit.key for fit in found if fit.whole}
        return chosen, _notes(path, chosen) + _notes_on_averages(path, chosen, content, used)
    left = [name for fit in chosen for name in fit.outside]
    said = [f"{path.name}: {listed(left)} are left out, as `weights_key` says."] if left else []
    return chosen, _notes(path, chosen) + said


def _check_values(path: Path, found: list[Fit]) -> None:
    """Require tensors that hold all their values.

    Raises:
        RequestError: One is sparse, or on the meta device.
    """
    for name, tensor in (item for fit in found for item in fit.tensors.items()):
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "on the meta device, without values" if tensor.is_meta else "sparse"
            raise RequestError(f"{name} of {path} is {kind}; save it as an ordinary tensor")


def _distinct(whole: list[Fit]) -> list[Fit]:
    """Return the fits without those that another one equals under another key."""
    kept: list[Fit] = []
    for fit in whole:
        if not any(same(fit, other) for other in kept):
            kept.append(fit)
    return kept


def _only(path: Path, whole: list[Fit], banks: int | None) -> list[Fit]:
    """Return the only fit, or the members of an ensemble, or ask."""
    if len(whole) == 1:
        return whole
    members = sorted(whole, key=lambda fit: [int(n) for n in re.findall(r"\d+", fit.key)])
    families = {re.sub(r"\d+", "#", fit.key) for fit in members}
    if len(families) == 1 and not any(_AVERAGED.search(fit.key) for fit in members):
        if banks in (None, len(members)):
            return members
        raise RequestError(
            f"{path} holds {len(members)} members ({listed([m.key for m in members])}) for "
            f"{_banks(banks)}; give `banks={len(members)}`, or choose with `weights_key`"
        )
    choices = [fit.key or "the top level" for fit in whole]
    averaged = [choice for choice in choices if _AVERAGED.search(choice)]
    hint = f" ({listed(averaged)}: EMA, averaged over the training)" if averaged else ""
    raise RequestError(
        f"{path} holds {len(whole)} different sets of weights that fit, {listed(choices)}{hint}; "
        f"choose one with `weights_key={(averaged[0] if averaged else whole[0].key)!r}`"
    )


def _named(
    path: Path,
    key: str,
    found: list[Fit],
    kind: str,
    wanted: Wanted,
    advice: Callable[[], str],
) -> Fit:
    """Return the fit that `--weights-key` names."""
    key = key.strip().rstrip(".")
    named = [
        fit
        for fit in found
        if fit.key == key or fit.key.startswith(f"{key}.") or fit.key.endswith(f".{key}")
    ]
    if not named:
        keys = dict.fromkeys(fit.key for fit in found if fit.key and fit.tensors)
        has = f"it has {listed(keys)}" if keys else "it has no keys, only tensors"
        raise RequestError(f"`weights_key` {key!r} names no weights in {path}; {has}")
    whole = _distinct([fit for fit in named if fit.whole])
    if not whole:
        raise _misfit(path, kind, _nearest(named), wanted, advice())
    exact = [fit for fit in whole if fit.key == key] or whole
    if len(exact) > 1:
        raise RequestError(
            f"`weights_key` {key!r} leaves a choice in {path}: {listed([f.key for f in exact])}"
        )
    return exact[0]


def _nearest(found: list[Fit]) -> Fit:
    return max(found, key=lambda fit: (len(fit.tensors) - len(fit.reshaped), len(fit.unexpected)))


def _misfit(path: Path, kind: str, fit: Fit, wanted: Wanted, advice: str) -> RequestError:
    """Return the error that shows both sides: what the file has and what the network wants."""
    where = f"{path} ({fit.key})" if fit.key else str(path)
    reshaped = [
        f"{name} is {list(fit.tensors[name].shape)}, not {list(wanted.tensors[name].shape)}"
        for name in fit.reshaped
    ]
    if not fit.tensors:
        has, wants = listed((*fit.unexpected, *fit.outside)), listed(list(wanted.tensors))
        said = [f"the file has {has}, and the network wants {wants}"]
    else:
        odd = {
            "it lacks": fit.missing,
            "it has another shape:": reshaped,
            "it has also": (*fit.unexpected, *fit.outside),
            "it is quantized, with integers in": fit.integers,
        }
        said = [f"{what} {listed(names)}" for what, names in odd.items() if names]
    return RequestError(
        f"{where} does not fit {kind}: {'; '.join([*said, *filter(None, [advice])])}"
    )


def _check_tied(path: Path, chosen: list[Fit], wanted: Wanted) -> None:
    """Require one value for a tensor that the network holds under several names.

    Raises:
        RequestError: The file has two, as of a network that is not tied.
    """
    for fit in chosen:
        first: dict[int, str] = {}
        for name, tensor in fit.tensors.items():
            other = first.setdefault(id(wanted.tensors[name]), name)
            if other != name and not torch.equal(fit.tensors[other], tensor):
                raise RequestError(
                    f"{path} has different values for {other} and {name}, which are one tensor of "
                    "the network; it is of a network that does not tie them"
                )


def _check_outside(path: Path, chosen: list[Fit], kind: str) -> None:
    """Require that a file has nothing beside the parts that fit.

    Raises:
        RequestError: It has: perhaps a head on top, or constants of its own.
    """
    used = {id(tensor) for fit in chosen for tensor in fit.tensors.values()}
    for fit in chosen:
        left = [name for name, tensor in fit.outside.items() if id(tensor) not in used]
        constants = [
            f"{name} {fit.outside[name].flatten().tolist()[:4]}"
            for name in left
            if re.search(r"(^|\.)(mean|mu|std|sigma)$", name)
        ]
        if left:
            hint = f"; {' and '.join(constants)} belong into `mean` and `std`" if constants else ""
            raise RequestError(
                f"{path} has more than {kind}: what is below {fit.key} fits, but there is also "
                f"{listed(left)}{hint}; `weights_key={fit.key!r}` takes what fits"
            )


def _notes_on_averages(path: Path, chosen: list[Fit], content: Any, used: set[str]) -> list[str]:
    """Say that averaged weights were taken, or that those beside the others were not."""
    notes, keys = [], [fit.key for fit in chosen]
    if any(map(_AVERAGED.search, keys)):
        notes.append(f"{path.name}: the weights are an average (EMA), {listed(keys)}.")
    left = [key for key in _averages(content) if not any(one.startswith(key) for one in used)]
    if left:
        notes.append(f"{path.name}: its averaged (EMA) weights {listed(left)} are not used.")
    return notes


def _notes(path: Path, chosen: list[Fit]) -> list[str]:
    """Say which member each bank has, and what is absent or left out."""
    notes = []
    if len(chosen) > 1:
        order = listed([fit.key for fit in chosen])
        notes.append(f"{path.name}: each bank has its own member, in the order {order}.")
    for fit in chosen:
        absent = [name for name in fit.absent if not name.endswith("num_batches_tracked")]
        if absent:
            notes.append(
                f"{path.name} lacks {listed(absent)}, which have no part in the answers and stay "
                "random."
            )
        beside = [name for name in fit.beside if "aux" in name.lower()]
        if beside:
            notes.append(f"{path.name}: {listed(beside)} have no place and are left out.")
    return notes


def _banks(count: int | None) -> str:
    return f"{count} bank{'s'[: count != 1]}"


def _averages(content: Any, key: str = "", depth: int = 0) -> list[str]:
    """Return the keys of averaged weights among what a file holds."""
    if not isinstance(content, dict) or depth > 2:
        return []
    found = []
    for name, value in content.items():
        full = f"{key}.{name}" if key else str(name)
        if _AVERAGED.search(str(name)) and _has_tensors(value):
            found.append(full)
        else:
            found += _averages(value, full, depth + 1)
    return found


def _has_tensors(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict | list) and depth < 4:
        inside = value.values() if isinstance(value, dict) else value
        return any(_has_tensors(one, depth + 1) for one in inside)
    return isinstance(value, Tensor) and value.ndim > 0
