"""What is true of a machine and of a model before anything is measured (`rlskit doctor`).

Nothing here is an evaluation: what would end one, or make its numbers mean nothing, shows itself in
seconds, on a few images.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from torch import Tensor, nn

from rlskit.attacks import prepare
from rlskit.data import Data
from rlskit.defenses import defense_of, draws
from rlskit.errors import UntrustedError
from rlskit.evaluation.basis import A_FEW
from rlskit.evaluation.clean import check_knowledge, look
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.evaluation.subject import Subject, library_versions, subject_of
from rlskit.models.banks import BankedModel, Card
from rlskit.runtime.devices import choose_device
from rlskit.seeds import Purpose
from rlskit.stats import lower_bound
from rlskit.threat.preflight import (
    IMAGES,
    LOOKED_AT,
    check_answers,
    check_gradients,
    masked_gradients,
)
from rlskit.threat.single import Threat
from rlskit.threat.view import attackers_view

_DEVELOPING = ("dev", "docs", "browser", "benchmarks")
"""Extras that nobody needs who measures models."""

_EXTRA = r"extra == .([\w-]+)"
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that is so.

    Attributes:
        about: What it is about, a word or two.
        text: What is so, in the library's words.
        trouble: Whether it would make numbers mean nothing.
    """

    about: str
    text: str
    trouble: bool = False


def machine() -> Iterator[Finding]:
    """Yield what a number made here depends on, and what is not installed."""
    versions = {"python": platform.python_version(), **library_versions()}
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "torch sees no GPU"
    yield Finding("device", f"{device.type} ({name})")
    yield Finding("threads", f"{torch.get_num_threads()}, on {os.cpu_count()} processors")
    for extra, package in _extras().items():
        try:
            yield Finding(extra, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(extra, f"not installed: pip install 'rlskit[{extra}]'")


def diagnose(model: BankedModel, data: Data) -> Iterator[Finding]:
    """Yield what is true of a model, and of it on some images; the images come second.

    Args:
        model: On the device to use.
        data: The images that it is to be measured on.

    Raises:
        RequestError: The images do not fit the model.
    """
    yield from _of_card(model)
    try:
        subject = subject_of(model, data)
    except UntrustedError as error:
        yield Finding("weights", str(error), trouble=True)
        return
    facts = subject.image_facts()
    yield Finding("images", f"{facts.name} ({facts.split}), {facts.n:,}")
    yield from (Finding("warning", sentence) for sentence in subject.facts()["warnings"])
    options = EvalOptions()
    yield from _of_answers(subject, options)
    yield from _of_runs(subject, options)


def _of_card(model: BankedModel) -> Iterator[Finding]:
    """Yield what a checkpoint says of itself."""
    card = model.card
    size = sum(tensor.numel() for tensor in model.banks[0].parameters())
    shape = "x".join(map(str, card.pixels.shape))
    yield Finding("size", f"{card.architecture.label}, {size:,} parameters, images of {shape}")
    count = defense_of(model).samples(model)
    yield Finding(
        "defense", f"{card.defense}, M = {model.num_banks}, L = {model.num_layers}, N = {count}"
    )
    mean, std = (
        ", ".join(f"{one:.4g}" for one in ones) for ones in (card.pixels.mean, card.pixels.std)
    )
    guessed = any(name in said for said in card.assumed for name in ("`mean`", "`std`"))
    source = "assumed, see the warnings" if guessed else "stated, or of what it was made for"
    yield Finding("constants", f"mean {mean}; std {std}: {source}")
    names = ", ".join(card.names[:_SHOWN]) + ", ..." * (len(card.names) > _SHOWN)
    order = f"in the order {names}" if names else "without names: the data's order is taken"
    yield Finding("classes", f"{card.classes}, {order}")


def _of_answers(subject: Subject, options: EvalOptions) -> Iterator[Finding]:
    """Yield what a few images show: of answers, gradients, and what the model knows."""
    model, data = subject.model, subject.data.limited(LOOKED_AT)
    images, labels = data.images(range(len(data))).to(model.device), data.labels.to(model.device)
    (draw,) = draws(model, 1, seed=options.seed, purpose=Purpose.DEFENDER)
    yield _tried("answers", lambda: _answers(draw, images, model.card))
    view = attackers_view(model, "transfer", 1, seed=options.seed, repeat=0, image=None)
    yield _tried("gradients", lambda: _gradients(view, images, labels))
    yield _tried("clean", lambda: _knowledge(subject, options))


def _answers(draw: nn.Module, images: Tensor, card: Card) -> str:
    """Say how they are read.

    Raises:
        UntrustedError: They are no logits, or others each time.
    """
    check_answers(draw, images[:IMAGES], card.classes, card.outputs)
    return f"read as {card.outputs or 'logits, as nothing shows otherwise'}"


def _gradients(view: nn.Module, images: Tensor, labels: Tensor) -> str:
    """Say where they can be followed.

    Raises:
        UntrustedError: Nowhere, or not at more than a few images, which would count as robust.
    """
    check_gradients(view, images[:IMAGES], labels[:IMAGES], "ce")
    lost, n = int(masked_gradients(view, images, labels, "margin").sum()), len(images)
    if lower_bound([lost / n], n) > A_FEW:
        raise UntrustedError(
            f"at {lost} of {n} images looked at not even the margin has a gradient to follow, so "
            "they would count as robust: the model masks it"
        )
    return f"can be followed at {n - lost} of {n} images looked at"


def _knowledge(subject: Subject, options: EvalOptions) -> str:
    """Say what the model gets right.

    Raises:
        UntrustedError: No more than guessing would.
    """
    found = look(subject.model, subject.data.limited(LOOKED_AT), options)
    trained = subject.model.card.trained
    doubts = check_knowledge(found, options, trained=trained, final=True)
    right = f"{found.right:g} of {found.n} images are right ({100 * found.accuracy:.1f} %)"
    return " ".join([f"{right}; guessing gets {100 * found.guessing:.1f} %", *doubts])


def _of_runs(subject: Subject, options: EvalOptions) -> Iterator[Finding]:
    """Yield what an evaluation and an attack take where nothing is said."""
    model, n = subject.model, options.counts(subject.model)[-1]
    scored = f"the mean of N = {n} draw{'s'[: n != 1]} on {len(subject.data):,} images"
    where = f"in blocks of {options.batch_size}, on {model.device.type}"
    yield Finding("eval takes", f"{scored}, {where}")
    attack = prepare("pgd")
    params = ", ".join(
        f"{name} {value:.4g}" for name, value in attack.stated.items() if _is_number(value)
    )
    yield Finding("attack takes", f"pgd in linf on one draw (transfer): {params}")
    threat = Threat(attack, "transfer", 1, "mean-prob")
    yield from (Finding("warning", sentence) for sentence in threat.warnings(model))


def _tried(about: str, look_at: Callable[[], str]) -> Finding:
    """Return what a check says, or why numbers would mean nothing."""
    try:
        return Finding(about, look_at())
    except UntrustedError as error:
        return Finding(about, str(error), trouble=True)


def _extras() -> dict[str, str]:
    """Return the extras of rlskit, each with the first package that it brings."""
    found: dict[str, str] = {}
    for requirement in requires("rlskit") or []:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(_EXTRA, requirement)
        if package and extra and extra[1] not in _DEVELOPING:
            found.setdefault(extra[1], package[0])
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
