"""What is tried on a network of one's own before a number is computed from it.

A model is M networks whose tensors are exchanged, written to a file and read again. Anyone's code
may keep state that no state dict shows, or reach from a copy to the original; then the number of a
draw, or after loading, would be another network's. All is tried on networks built for this alone,
on a few random images, with weights that leave no part of the network without effect.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.errors import RequestError, RlskitError, reason
from rlskit.models import own
from rlskit.models.architecture import Architecture
from rlskit.models.banks import BankedModel, Card
from rlskit.models.building import build
from rlskit.models.difference import unregistered
from rlskit.models.partition import Partition
from rlskit.models.streams import kept, sources_of, started, varies
from rlskit.models.trace import inexact, tensor_names, unusable
from rlskit.seeds import Purpose

_IMAGES = 2
_ROUNDING = 1e-4
"""Change of a logit, as a fraction of the largest, that is still rounding on one machine."""

_ELSEWHERE = 0.01
"""What it may be at least where another machine, or a GPU, computed the logits."""

_HALF = 8
"""Units in the last place of a network in half precision that its logits may be off by."""

_KEPT = 64
"""At most so many logits stand in a checkpoint, to be compared when it is loaded."""

_READERS = (
    torch.load, torch.jit.load, np.load, np.fromfile, pickle.load, pickle.loads,
    safetensors.torch.load_file, safetensors.torch.load, safetensors.safe_open,
)  # fmt: skip
"""What a factory that brings its own weights reads them with."""


def try_own(card: Card, parts: Partition) -> bool:
    """Require that draws, and networks built again, answer as the network itself does.

    A network with noise of its own is let through; the preflight refuses it.

    Returns:
        Whether the factory brings its own weights: it reads a file, and they are the same under
        another seed. Equal weights alone could also come of a seed that the factory sets.

    Raises:
        RequestError: They do not, or the network fails on images as it would get them.
    """
    architecture, shape = card.architecture, card.pixels.shape
    with _reading() as read:
        first, second = (_built(architecture, shape, bank) for bank in range(2))
    brings = (bool(read) or architecture.is_program) and _are_equal(
        tensor_names(first), tensor_names(second)
    )
    model = BankedModel([first, second], parts, replace(card, bank_probs=()))
    with own.heard(), kept(sources_of(model)):
        try:
            _stir(model)
            _check_rebuilt(model)
            _check_draws(model)
        except RlskitError:
            raise
        except Exception as error:  # whatever one's own code raises
            raise unusable(first, shape, error) from error
    return brings


def check_rebuilt(card: Card, parts: Partition) -> None:
    """Require that networks built again from the same tensors answer alike.

    Raises:
        RequestError: They do not: the network keeps state that no file holds.
    """
    network = _built(card.architecture, card.pixels.shape, 0)
    model = BankedModel([network], parts, replace(card, bank_probs=()))
    with own.heard(), kept(sources_of(model)):
        _stir(model)
        _check_rebuilt(model)


def kept_answers(model: BankedModel) -> list[float]:
    """Return some logits of bank 0, to be kept beside the tensors; none where they are noise."""
    draw = model.sampled(torch.zeros(model.num_layers, dtype=torch.long))
    images = _images(model)
    with own.heard(), torch.no_grad():
        noisy = varies(model, lambda: draw(images))
        found = draw(images)
    answers: list[float] = found.flatten()[:_KEPT].tolist()
    return answers if found.isfinite().all() and not noisy else []


def check_kept_answers(model: BankedModel, kept: list[float]) -> None:
    """Require that bank 0 answers as it did when it was saved.

    Raises:
        RequestError: It does not.
    """
    if not kept or not (found := kept_answers(model)):
        return  # there is nothing to compare where a network is random
    tolerance = max(_ELSEWHERE, 4 * _rounding(model))
    if len(found) != len(kept) or not _alike(torch.tensor(found), torch.tensor(kept), tolerance):
        raise RequestError(
            f"{model.card.architecture.name} builds another network than the one that was saved: "
            "the same weights give other answers; a file that it imports has changed, or it keeps "
            "random state that is no parameter or buffer"
        )


def _built(architecture: Architecture, shape: tuple[int, int, int], bank: int) -> nn.Module:
    with started(seeds.derive(0, Purpose.TRIAL, bank)):
        network = build(architecture, shape)
    network.eval()
    return network


def _are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two networks have the same tensors, and some that are no mere constant."""
    same = first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and torch.equal(first[name], second[name])
        for name in first
    )
    return same and any(
        t.is_floating_point() and bool((t != t.flatten()[:1]).any()) for t in first.values()
    )


@torch.no_grad()
def _stir(model: BankedModel) -> None:
    """Change all parameters a little: a scale or head of zeros would hide what is before it."""
    rng = torch.Generator().manual_seed(0)
    for parameter in inexact(model):
        spread = parameter.std() if parameter.numel() > 1 else torch.zeros(())
        spread = spread if spread > 0 else torch.ones(())
        noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float32)
        parameter.add_((0.1 * spread * noise).to(parameter))


def _check_draws(model: BankedModel) -> None:
    """Require that draws of one bank answer as the bank, unless that has noise of its own.

    Raises:
        RequestError: One does not.
    """
    if _is_noisy(model):
        return
    name, images = model.card.architecture.name, _images(model)
    rounding = _rounding(model)
    expected = [_answer(bank, model) for bank in model.banks]
    for bank, wanted in enumerate(expected):
        plan = torch.full((model.num_layers,), bank)
        try:
            found = [model.sampled(plan)(images), model(images, plan)]
        except Exception as error:
            raise RequestError(
                f"{name} works, but not with other tensors in its place ({reason(error)}); "
                f"{_REACHES}"
            ) from error
        if not all(_alike(one, wanted, rounding) for one in found):
            raise RequestError(
                f"{name} answers otherwise once other tensors are in the place of its own; "
                f"{_REACHES}"
            )


_REACHES = (
    "does it keep what it computed from its weights, or has it hooks that belong to one copy? "
    "Compute it anew in each forward, and let hooks be methods"
)


def _check_rebuilt(model: BankedModel) -> None:
    card, network = model.card, model.banks[0]
    again = _built(card.architecture, card.pixels.shape, 2)
    tensors, others = tensor_names(network), tensor_names(again)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in others.items()}:
        raise RequestError(f"{card.architecture.name} builds another network each time")
    with torch.no_grad():
        for name, tensor in others.items():
            tensor.copy_(tensors[name])
    rounding, wanted = _rounding(model), _answer(network, model)
    if _is_noisy(model) or _alike(_answer(again, model), wanted, rounding):
        return
    names = unregistered(network, again)
    what = f"in {', '.join(names[:5])}" if names else "outside its parameters and buffers"
    raise RequestError(
        f"{card.architecture.name} keeps random state {what}, which no file of weights holds, so "
        "after loading it would be another network; use register_buffer for tensors and "
        "nn.ModuleList or nn.ModuleDict for layers"
    )


def _answer(network: nn.Module, model: BankedModel) -> Tensor:
    return model.reading.logits(network, model.normalize(_images(model))).detach()


def _is_noisy(model: BankedModel) -> bool:
    """Whether bank 0 answers otherwise each time, by more than rounding."""
    alike = partial(_alike, rounding=_rounding(model))
    return varies(model, lambda: _answer(model.banks[0], model), alike)


def _images(model: BankedModel) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(_IMAGES, *model.card.pixels.shape, generator=rng).to(model.device)


def _rounding(model: BankedModel) -> float:
    """Return the change of a logit, as a fraction of the largest, that is still rounding."""
    return max(_ROUNDING, _HALF * torch.finfo(model.reading.dtype).eps)


def _alike(found: Tensor, wanted: Tensor, rounding: float) -> bool:
    atol = rounding * float(wanted.abs().max())
    return found.shape == wanted.shape and torch.allclose(
        found, wanted, rtol=0, atol=atol, equal_nan=True
    )


@contextmanager
def _reading() -> Iterator[list[str]]:
    """Note the calls of functions that read weights from files, wherever they were imported."""
    read: list[str] = []

    def noted(reader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        read.append(reader.__name__)
        return reader(*args, **kwargs)

    with ExitStack() as stack:
        for reader in _READERS:
            for module in list(sys.modules.values()):
                if getattr(module, "__dict__", {}).get(reader.__name__) is reader:
                    setattr(module, reader.__name__, partial(noted, reader))
                    stack.callback(setattr, module, reader.__name__, reader)
        yield read
