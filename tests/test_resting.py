"""Images that are surely fooled rest: nothing is lost by it, and it happens only where it may."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit import attack
from rlskit.attacks import ATTACKS, prepare
from rlskit.attacks.attempts import SURE_LEAD, surely_fooled
from rlskit.attacks.losses import trail
from rlskit.models.banks import BankedModel, Normalize
from rlskit.threat.single import may_rest
from small_models import Counting, Waves, answered, answers, generator

RESTING = [method for method, row in ATTACKS.items() if row.rests]
EPS = {"linf": 0.004, "l2": 0.02}
DATA = small_models.digits(60)


@pytest.fixture(scope="module")
def undefended() -> BankedModel:
    return small_models.trained("none", 1)


def run(method: str, model: nn.Module, images: Tensor, labels: Tensor, **given: Any) -> Tensor:
    options = {"steps": 12} | ({"queries": 20} if method == "autoattack" else {})
    options |= ATTACKS[method].fixed
    found: Tensor = ATTACKS[method].run(
        model, images, labels, **options, **given, generator=generator()
    )
    return found


def test_which_attacks_let_images_rest() -> None:
    assert RESTING == ["apgd-ce", "apgd-dlr", "apgd-t", "autoattack"]


@pytest.mark.parametrize(
    ("method", "norm"), list(zip(RESTING, ("linf", "l2", "linf", "l2"), strict=True))
)
def test_who_is_fooled_and_what_survivors_get_stays_and_it_costs_less(
    method: str, norm: str
) -> None:
    model = Counting(Waves(5).double())
    images = torch.rand(16, *small_models.SHAPE, generator=generator(1)).double()
    labels = answers(model, images)  # in double, rounding cannot grow to what is seen below
    labels[3] = (labels[3] + 1) % 5
    given = {"norm": norm, "eps": EPS[norm]}
    asked, found = [], []
    for rest in (False, True):
        model.asked.clear()
        found.append(run(method, model, images, labels, **given, rest=rest))
        asked.append(sum(model.asked))
    fooled = [answers(model, one) != labels for one in found]
    assert torch.equal(*fooled)
    assert 3 < fooled[0].sum() < 14
    survivors = [one[~fooled[0]] for one in found]
    torch.testing.assert_close(*survivors, atol=1e-9, rtol=0)
    assert asked[1] < asked[0]
    order = torch.randperm(16, generator=generator(3))
    shuffled = run(method, model, images[order], labels[order], **given, rest=True)
    torch.testing.assert_close(shuffled, found[1][order], atol=1e-9, rtol=0)
    assert torch.equal(found[1], run(method, model, images, labels, **given, rest=True))


def test_an_image_rests_at_the_first_iterate_that_fools_it_surely() -> None:
    model = Counting(Waves(5))
    images, labels = answered(model, 24)
    model.asked.clear()
    found = run("apgd-ce", model, images, labels, eps=0.01, rest=True)
    asked = list(model.asked)
    assert asked == sorted(asked, reverse=True)
    logits = model(found)
    surely = trail(logits, labels) > SURE_LEAD * logits.abs().amax(1)
    assert 0 < 24 - asked[-1] <= surely.sum()
    assert asked[-1] >= (~surely).sum() > 0, "who is fooled by less, or not at all, goes on"


class Hesitant(nn.Module):
    """All logits lie together, far from 0, so that no lead is more than rounding could be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return 1000 + logits


def test_an_image_that_is_barely_fooled_goes_on() -> None:
    model = Counting(Hesitant(Waves(5)))
    images, labels = answered(model, 16)
    found = [run("apgd-ce", model, images, labels, eps=0.01, rest=rest) for rest in (False, True)]
    assert (answers(model, found[0]) != labels).sum() > 8
    assert torch.equal(*found)


def test_calls_that_err_apart_and_are_right_together_are_no_error() -> None:
    calls = [torch.tensor([[1.0, 1.2, -1.0]]), torch.tensor([[1.0, -1.0, 1.2]])]
    assert [surely_fooled([one], torch.tensor([0])).item() for one in calls] == [True, True]
    assert not surely_fooled(calls, torch.tensor([0])).item()


@pytest.mark.parametrize(
    ("network", "given"),
    [
        ("as it is", {"eps": 0.1}),
        ("as it is", {"eps": 0.6, "norm": "l2"}),
        ("sigmoid", {"eps": 0.1}),
        ("bfloat16", {"eps": 0.6, "norm": "l2"}),
    ],
)
def test_as_many_withstand_where_one_network_answers(
    undefended: BankedModel, network: str, given: dict[str, Any], tmp_path: Path
) -> None:
    layers = [Normalize(small_models.PIXELS), copy.deepcopy(undefended.banks[0])]
    if network == "sigmoid":
        layers.append(nn.Sigmoid())
    model = nn.Sequential(*layers).eval()
    if network == "bfloat16":
        model = model.bfloat16()
    request: dict[str, Any] = {"method": "apgd-ce", "steps": 15, **given}
    resting = attack(model, DATA, **request)
    whole = attack(model, DATA, **request, out=tmp_path, save_adversarial=True)
    assert resting.attack is not None
    assert whole.attack is not None
    assert (resting.attack.early_exit, whole.attack.early_exit) == (True, None)
    assert resting.accuracy["robust"] == whole.accuracy["robust"]
    assert 0.1 < resting.accuracy["robust"].mean < 0.9
    assert resting.timing.forwards < 0.9 * (whole.timing.forwards - len(DATA))  # 8 bits scored


@pytest.mark.parametrize(
    ("defense", "protocol", "n", "save", "method", "allowed"),
    [
        ("none", "transfer", 1, False, "apgd-t", True),
        ("none", "transfer", 1, True, "apgd-t", False),
        ("none", "transfer", 1, False, "pgd", False),
        ("none", "multi", 2, False, "apgd-t", False),
        ("crossmax", "transfer", 1, False, "autoattack", True),
        ("rls", "transfer", 1, False, "apgd-t", False),
        ("rls", "eot", 1, False, "apgd-t", False),
        ("rls", "known", 1, False, "apgd-t", True),
        ("rls", "known", 2, False, "apgd-t", False),
        ("ensemble", "multi", 2, False, "apgd-t", False),
    ],
)
def test_where_images_may_rest(
    defense: str, protocol: str, n: int, save: bool, method: str, allowed: bool
) -> None:
    banks = 1 if defense == "none" else 2
    model = small_models.model(banks, defense, layers=2 if defense == "rls" else 1)
    assert may_rest(model, prepare(method), protocol, n, save=save) is allowed
