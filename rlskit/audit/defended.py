"""What is audited, seen from both sides: the defender's answer and the attacker's view.

A model of rlskit's has draws. Any other module is its own only draw; where it answers differently
each time, fresh draws of it are further calls.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.defenses import defense_of, draws
from rlskit.defenses.answers import mean_log_probabilities
from rlskit.errors import RequestError, UntrustedError, own_code
from rlskit.models.banks import BankedModel
from rlskit.models.outputs import (
    HeadlessError,
    Reading,
    in_unit_range,
    key_of,
    kind_of,
    reading_of,
)
from rlskit.models.streams import OFTEN, kept, others_of, sources_of, start_all, states_of
from rlskit.seeds import Purpose
from rlskit.threat.preflight import rounding
from rlskit.threat.view import DrawsView, attackers_view

CALLS = 10
"""How often a model answers the same images to show its randomness; AutoAttack asks 5 times."""

SHOWN = 8
"""Images that it is asked about."""

VARIATION = 1e-4
"""Change of an image's scaled logits that is still rounding; AutoAttack's threshold."""

ANSWERS = 20
"""Calls whose mean probability is a random module's answer, unless told otherwise."""


class Defended(Protocol):
    """What is audited."""

    @property
    def n_samples(self) -> int:
        """Draws or calls that answer together."""
        ...

    @property
    def draws(self) -> int | None:
        """How many draws there are for the attacker; None for any number."""
        ...

    def answer(self) -> nn.Module:
        """Return what is scored."""
        ...

    def one(self) -> nn.Module:
        """Return one draw, in the mode in which it answers."""
        ...

    def view(self, protocol: str, n_attacked: int, repeat: int = 0) -> nn.Module:
        """Return what an attack is computed on."""
        ...


class Boundary(nn.Module):
    """A module of one's own, which gets images of its own and gives nothing but logits.

    It may write into what it is given, as by `x.sub_(mean)`, may answer with more than logits, in
    half precision, or with probabilities (`rlskit.models.outputs`).
    """

    def __init__(self, module: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.module = module
        self.reading = reading
        self.training = module.training

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to float32 logits `[B, classes]`."""
        with own_code(len(images)):
            return self.reading.logits(self.module, images.clone())


def at_the_boundary(module: nn.Module, images: Tensor) -> Boundary:
    """Return a module of one's own behind a `Boundary`, its answers read as they show themselves.

    Raises:
        RequestError: It answers without a tensor that may hold logits.
        UntrustedError: Its answers may be probabilities, and nothing tells of what kind.
    """
    asked, reading, n = attacked(module), reading_of(module), len(images)
    shown = [images.to(reading.dtype, copy=True) for _ in range(3)]  # it may write into them
    with randomness(0, Purpose.BOUNDARY, images.device), torch.no_grad(), own_code(n):
        try:
            reading = replace(reading, key=key_of(asked(shown[0]), n))
        except HeadlessError as error:
            raise RequestError(f"{type(module).__name__} is no classifier: {error}") from error
        kind = kind_of(asked, shown[1], reading.key)
        answer = reading.logits(asked, shown[2])
    if not kind and answer.ndim == 2 and in_unit_range(answer):
        raise UntrustedError(
            "every answer of the module lies in [0, 1], as a sigmoid's or a softmax's would, and "
            "attacks need logits; audit it without its last step"
        )
    return Boundary(module, replace(reading, outputs=kind))


class Calls(nn.Module):
    """A random module asked n times: the log of its mean probability."""

    def __init__(self, module: nn.Module, n: int) -> None:
        super().__init__()
        self.module = module
        self.n = n

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, classes]`."""
        return mean_log_probabilities(torch.stack([self.module(images) for _ in range(self.n)]))


@dataclass(frozen=True)
class Banked:
    """A model of rlskit's.

    Attributes:
        model: From `convert` or `load`.
        n_samples: N, the defender's draws.
        seed: The user's.
        draws: How many the attacker can tell apart; None for any number.
    """

    model: BankedModel
    n_samples: int
    seed: int
    draws: int | None

    def answer(self) -> nn.Module:
        """Return the mean probability of N draws."""
        found = draws(self.model, self.n_samples, seed=self.seed, purpose=Purpose.DEFENDER)
        return found[0] if self.n_samples == 1 else DrawsView(found)

    def one(self) -> nn.Module:
        """Return one draw."""
        return draws(self.model, 1, seed=self.seed, purpose=Purpose.ATTACKER)[0]

    def view(self, protocol: str, n_attacked: int, repeat: int = 0) -> nn.Module:
        """Return what an attack is computed on (`rlskit.threat.view`)."""
        return attackers_view(self.model, protocol, n_attacked, seed=self.seed, repeat=repeat)


@dataclass(frozen=True)
class Own:
    """Any other module, images in [0, 1] to logits.

    Attributes:
        module: It answers in the mode it is in; an attack puts it in eval mode.
        n_samples: Calls that answer together.
        draws: 1 where it answers alike each time under attack; else None.
    """

    module: nn.Module
    n_samples: int
    draws: int | None

    def answer(self) -> nn.Module:
        """Return the module, asked more than once where it is random."""
        return self.module if self.n_samples == 1 else Calls(self.module, self.n_samples)

    def one(self) -> nn.Module:
        """Return the module."""
        return self.module

    def view(self, protocol: str, n_attacked: int, repeat: int = 0) -> nn.Module:  # noqa: ARG002
        """Return the module, asked n times; it has no draws that could be fixed."""
        return self.module if n_attacked == 1 else Calls(self.module, n_attacked)


def banked(model: BankedModel, images: Tensor, n_samples: int | None, seed: int) -> Banked:
    """Return a model of rlskit's as what is audited.

    Its draws leave nothing random, but a network of one's own may bring randomness along.
    """
    defense = defense_of(model)
    found = Banked(model, n_samples or defense.samples(model), seed, defense.distinct(model))
    if found.draws == 1 and is_random(found.one(), images, seed):
        return Banked(model, n_samples or ANSWERS, seed, None)
    return found


def own(module: nn.Module, images: Tensor, n_samples: int | None, protocol: str, seed: int) -> Own:
    """Return any other module as what is audited; one in train mode is copied, not changed.

    Raises:
        RequestError: The protocol needs fixed draws, which it does not have.
    """
    if protocol in ("multi", "known"):
        raise RequestError(
            f"protocol {protocol} attacks fixed draws, and a module of one's own has one; use "
            "protocol='eot' for a random one"
        )
    if any(part.training for part in module.modules()):
        module = copy.deepcopy(module)  # BatchNorm learns whenever it is asked
    answers = ANSWERS if is_random(module, images, seed) else 1
    attacked_is_random = is_random(attacked(module), images, seed)
    return Own(module, n_samples or answers, None if attacked_is_random else 1)


def attacked(module: nn.Module) -> nn.Module:
    """Return the module as attacks see it: in eval mode."""
    if not any(part.training for part in module.modules()):
        return module
    return copy.deepcopy(module).eval()


@torch.no_grad()
def influence(module: nn.Module, images: Tensor, seed: int, *, random: bool = True) -> float:
    """Return by how much an image's logits, scaled as in `variation`, change with its batch-mates.

    The mates are the other images, then their negatives, and where the module is not random, whose
    noise has a place in the batch, then itself. 0 where the module is random in a way that a seed
    does not repeat, which says nothing of mates.
    """

    def asked(batch: Tensor) -> Tensor:
        with randomness(seed, Purpose.INFLUENCE, images.device):
            answer: Tensor = module(batch)
            return answer

    kept = images[: (len(images) + 1) // 2]
    batches = [torch.cat([kept, mates]) for mates in (kept, kept, 1 - kept)]
    first, again, *others = [_scaled(asked(batch)[: len(kept)]) for batch in batches]
    if not random:
        pairs = _scaled(
            torch.cat([asked(one.repeat(2, 1, 1, 1))[:1] for one in torch.split(kept, 1)])
        )
        moved = (pairs - first).abs().amax(1) > rounding(module)
        others += [pairs] if 2 * moved.sum() >= len(kept) else []  # fewer cross a step by rounding
    if (again - first).abs().max() > VARIATION:
        return 0.0
    return max(float((one - first).abs().max()) for one in others)


def _scaled(logits: Tensor) -> Tensor:
    logits = logits - logits.mean(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True)
    return logits / lengths.clamp_min(1e-12)


def is_random(module: nn.Module, images: Tensor, seed: int) -> bool:
    """Say whether a module answers the same images differently each time, beyond rounding."""
    return variation(module, images, seed) > VARIATION


@torch.no_grad()
def variation(module: nn.Module, images: Tensor, seed: int) -> float:
    """Return the largest change over `CALLS` calls of an image's logits at mean 0 and l2 norm 1.

    AutoAttack scales them so, too (`check_randomized` of
    https://github.com/fra31/auto-attack/blob/master/autoattack/checks.py). A module that answers
    alike each time though it draws random numbers is asked `OFTEN` more: it may choose between
    paths, and take one of them rarely.
    """
    sources = sources_of(module)
    with kept(sources), randomness(seed, Purpose.VARIATION, images.device):
        before = states_of(sources)
        found = [module(images) for _ in range(CALLS)]
        if _spread(found) <= VARIATION and states_of(sources) != before:
            found += [module(images) for _ in range(OFTEN)]
    return _spread(found)


def _spread(answers: list[Tensor]) -> float:
    scaled = _scaled(torch.stack(answers))
    return float((scaled.amax(0) - scaled.amin(0)).max())


@contextmanager
def randomness(seed: int, purpose: Purpose, device: torch.device) -> Iterator[None]:
    """Seed the global randomness that a module of one's own may use, and put it back after."""
    devices, others = [device] if device.type == "cuda" else [], others_of()
    with torch.random.fork_rng(devices=devices), kept(others):
        start_all(others, seeds.derive(seed, purpose))
        torch.manual_seed(seeds.derive(seed, purpose))
        yield
