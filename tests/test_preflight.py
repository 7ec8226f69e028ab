"""The preflight: each check fails on what it is for, and an honest model passes all."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import small_models
from rlskit.attacks import ATTACKS, PreparedAttack, prepare
from rlskit.defenses import draws
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.banks import BankedModel
from rlskit.threat import preflight as checks
from rlskit.threat.view import attackers_view

DATA = small_models.digits(4)
IMAGES, LABELS = DATA.images(range(4)), DATA.labels


PLACES = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))


class Answering(nn.Module):
    """A classifier of 10 classes that answers by a function."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)


def honest(images: Tensor) -> Tensor:
    return images.flatten(1)[:, 20:30] * 3


def run(model: BankedModel, attack: PreparedAttack, view: nn.Module | None = None) -> None:
    (draw,) = draws(model, 1, seed=0, purpose="defender")
    checks.preflight(model, draw, view or draw, attack, IMAGES, LABELS)


@pytest.mark.parametrize(
    ("method", "engine"),
    [(method, "rlskit") for method in ATTACKS]
    + [(method, "torchattacks") for method, attack in ATTACKS.items() if attack.upstream],
)
def test_an_honest_model_passes_with_every_attack(method: str, engine: str) -> None:
    # AutoAttack spends thousands of queries on what it cannot fool
    options: dict[str, Any] = {"eps": 0.5} if method == "autoattack" else {}
    run(small_models.model(2), prepare(method, engine=engine, **options))


def test_the_eot_view_passes() -> None:
    model = small_models.model(2)
    run(model, prepare("pgd"), attackers_view(model, "eot", 2, seed=0, repeat=0))


RARELY = itertools.cycle([0] * 7 + [1])
"""A choice that no known generator makes, and that comes out the same often."""


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bank", [0, 1])
def test_broken_weights_are_named(value: float, bank: int) -> None:
    model = small_models.model(2)
    small_models.tensor(model, bank, "6.weight")[3, 5] = value
    with pytest.raises(
        UntrustedError, match=rf"6\.weight of bank {bank} holds NaN or inf"
    ) as caught:
        checks.check_weights(model)
    assert caught.value.exit_code == 4


def test_broken_running_statistics_are_named() -> None:
    model = small_models.model(1)
    small_models.tensor(model, 0, "2.running_var")[0] = math.nan
    with pytest.raises(UntrustedError, match=r"2\.running_var of bank 0"):
        checks.check_weights(model)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: honest(x)[:, :9], r"answers with shape \[4, 9\], not \[4, 10\]"),
        (lambda x: honest(x)[:2], r"answers with shape \[2, 10\]"),
        (lambda x: honest(x).log(), "NaN or infinite logits"),
        (lambda x: honest(x) / 0, "NaN or infinite logits"),
        (lambda x: honest(x) + torch.randn(4, 10), "claims no randomness but answers"),
        (lambda x: honest(x) + next(RARELY), "claims no randomness but answers"),
        (lambda x: honest(x) + x.mean(), "differently among others than alone"),
        # the first image is spared: statistics of it, and noise by the place in the batch
        (lambda x: honest(x) + x[:1].mean(), "differently among others than alone"),
        (lambda x: honest(x) + PLACES[: len(x)], "differently among others than alone"),
    ],
)
def test_answers(answer: Callable[[Tensor], Tensor], message: str) -> None:
    checks.check_answers(Answering(honest), IMAGES, 10)
    with pytest.raises(UntrustedError, match=message):
        checks.check_answers(Answering(answer), IMAGES, 10)


def test_one_class_is_nothing_to_be_wrong_about() -> None:
    with pytest.raises(UntrustedError, match="has one class, which no image can be turned from"):
        checks.check_answers(Answering(lambda x: honest(x)[:, :1]), IMAGES, 1)
    checks.check_answers(Answering(lambda x: honest(x)[:, :2]), IMAGES, 2)


def test_a_single_image_may_cross_a_step_by_rounding() -> None:
    """As in SAP, and in networks with binary activations."""

    def stepping(x: Tensor) -> Tensor:
        logits = honest(x)
        logits[2:3] += float(len(x) > 1)
        return logits

    checks.check_answers(Answering(stepping), IMAGES, 10)


@pytest.mark.parametrize("images", [IMAGES * 255, IMAGES - 0.1, IMAGES / 0])
def test_images_out_of_range(images: Tensor) -> None:
    with pytest.raises(RequestError, match=r"must lie in|NaN or infinite pixels"):
        checks.check_answers(Answering(honest), images, 10)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (x > 0.5).float().flatten(1)[:, 20:30] + 0 * x.sum(), "all zero"),
        (lambda x: (honest(x) * 1e6).softmax(1), "all zero"),
        (lambda x: honest(x) * 1e-9 + 1, "all zero, or less than rounding"),
        (lambda x: (honest(x) * 0).sqrt(), "NaN or infinite"),
    ],
)
def test_gradients(answer: Callable[[Tensor], Tensor], message: str) -> None:
    images = 0.1 + 0.8 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = honest(images).argmax(1)
    checks.check_gradients(Answering(honest), images, labels, "ce")
    with pytest.raises(UntrustedError, match=f"gradients at the images are {message}"):
        checks.check_gradients(Answering(answer), images, labels, "ce")


@pytest.mark.parametrize("method", ["cw", "ead"])
def test_a_lead_that_no_logits_can_have(method: str) -> None:
    checks.check_confidence(prepare(method), Answering(honest), IMAGES)
    tiny = Answering(lambda x: honest(x) * 1e-3)
    checks.check_confidence(prepare(method, kappa=0), tiny, IMAGES)
    with pytest.raises(UntrustedError, match=r"`kappa=0\.1`, and the logits .* give a smaller"):
        checks.check_confidence(prepare(method), tiny, IMAGES)


class OneWay(torch.autograd.Function):
    """A step whose author wrote no backward pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.sign()


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: honest(OneWay.apply(x)),  # type: ignore[no-untyped-call]
        lambda x: honest(checkpoint(torch.sin, x, use_reentrant=True)),
        lambda x: (y := honest(x).sigmoid()) * y.exp_(),
    ],
)
def test_logits_without_a_gradient_to_compute(answer: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UntrustedError, match="the gradient of the model's logits cannot be comp"):
        checks.check_gradients(Answering(answer), IMAGES, LABELS, "ce")


def test_logits_cut_off_from_the_images() -> None:
    """As by JPEG or NumPy inside: no attack can differentiate it, which is not robustness."""
    hidden = Answering(lambda x: honest(x.detach()))
    labels = honest(IMAGES).argmax(1)
    with pytest.raises(UntrustedError, match="do not depend differentiably on its images"):
        checks.check_gradients(hidden, IMAGES, labels, "ce")
    with pytest.raises(UntrustedError, match="do not depend differentiably on its images"):
        prepare("pgd", eps=0.1)(hidden, IMAGES, labels, generator=torch.Generator())


def replaced(monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[..., Tensor]) -> None:
    known = ATTACKS[method]
    attack = dataclasses.replace(known, run=functools.wraps(known.run)(act))
    monkeypatch.setitem(ATTACKS, method, attack)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m, x, y, *, eps, **_: (x + 2 * eps).clamp(0, 1), "broke its budget: linf"),
        (lambda m, x, y, *, eps, **_: x + eps, r"left \[0, 1\]"),
        (lambda m, x, y, *, eps, **_: x[:2], "images of shape"),
        (lambda m, x, y, *, eps, **_: x * math.nan, "NaN or infinite pixels"),
        (
            lambda m, x, y, *, eps, **_: (x + 1e-7 * (x < 0.5)).clamp(0, 1),
            "fgsm changes images although its budget is 0",
        ),
    ],
)
def test_an_attack_that_breaks_its_promise(
    act: Callable[..., Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare("fgsm", eps=0.1)
    replaced(monkeypatch, "fgsm", act)
    with pytest.raises(UntrustedError, match=message):
        run(small_models.model(1), prepared)


def test_the_trial_run_is_never_longer_than_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def act(m: nn.Module, x: Tensor, y: Tensor, *, steps: int, **_: object) -> Tensor:
        seen.append(steps)
        return x

    prepared = [prepare("pgd", steps=steps) for steps in (1, 1000)]
    replaced(monkeypatch, "pgd", act)
    for attack in prepared:
        checks.check_attack(attack, Answering(honest), IMAGES, LABELS)
    assert seen == [1, 1, 2, 2]
