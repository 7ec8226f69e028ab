"""AutoAttack: what each of its four attacks is for, known optima, and who is asked how often."""

import contextlib
import io
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from rlskit.attacks.apgd import apgd, apgd_t
from rlskit.attacks.autoattack import autoattack
from rlskit.attacks.losses import LOSSES
from rlskit.attacks.square import square
from rlskit.errors import UntrustedError
from rlskit.pixels import check_adversarial
from small_models import (
    SHAPE,
    Constant,
    Counting,
    Net,
    Plane,
    Waves,
    answered,
    answers,
    generator,
    size,
)

QUICK: dict[str, Any] = {"steps": 10, "queries": 20}


class Scaled(nn.Module):
    """Logits so large that the gradient of cross-entropy is 0 to the last bit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.plane = Plane(classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 1e4 * self.plane(images)
        return logits


class Stairs(nn.Module):
    """Rounds its pixels: gradients are 0 everywhere, scores are not constant."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.plane = Plane(classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.plane((images * 200).round() / 200)
        return logits


# --- What each attack is for.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_its_other_parts_fool_where_one_has_no_gradient(
    classes: int, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "ce", LOSSES["ce-saturating"])
    # Two classes: FAB does it; three: APGD on DLR; more: targeted APGD.
    model = Scaled(classes)
    images, labels = model.plane.images(4)
    for scale, fooled in ((0.98, False), (1.02, True)):
        eps = scale * model.plane.distance(norm)
        options: dict[str, Any] = {"norm": norm, "eps": eps, "generator": generator()}
        by_ce = apgd(model, images, labels, steps=10, **options)
        assert (answers(model, by_ce) == labels).all()
        found = autoattack(model, images, labels, steps=20, queries=5, **options)
        check_adversarial(images, found, norm, eps)
        assert ((answers(model, found) != labels) == fooled).all()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_it_fools_where_there_are_no_gradients_at_all(classes: int) -> None:
    model = Stairs(classes)
    images, labels = model.plane.images(4)
    options: dict[str, Any] = {"eps": 2 * model.plane.distance("linf"), "generator": generator()}
    blind = autoattack(model, images, labels, steps=3, queries=1, **options)
    found = autoattack(model, images, labels, steps=3, queries=1000, **options)
    assert (answers(model, blind) == labels).any()
    assert (answers(model, found) != labels).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_linear_optimum(norm: str, version: str) -> None:
    model = Plane(4)
    images, labels = model.images(4)
    for scale, fooled in ((0.99, False), (1.01, True)):
        eps = scale * model.distance(norm)
        found = autoattack(
            model, images, labels, norm=norm, eps=eps, version=version, steps=10, queries=50,
            generator=generator(),
        )  # fmt: skip
        check_adversarial(images, found, norm, eps)
        assert ((answers(model, found) != labels) == fooled).all()


def test_it_fools_whoever_one_of_its_attacks_fools() -> None:
    model = Waves(10)
    images, labels = answered(model, 32)
    options: dict[str, Any] = {"eps": 0.003, "generator": generator()}
    alone = [
        apgd(model, images, labels, steps=10, **options),
        apgd_t(model, images, labels, steps=10, **options),
        square(model, images, labels, steps=20, **options),
    ]
    fooled = answers(model, autoattack(model, images, labels, **QUICK, **options)) != labels
    each = torch.stack([answers(model, x) != labels for x in alone])
    assert (fooled >= each.any(0)).all()
    assert 0 < fooled.sum() < 32
    assert each.any(0).sum() > each[0].sum(), "the first attack alone is not enough"


def test_it_fools_at_least_as_many_as_torchattacks() -> None:
    model = Waves(10)
    images, labels = answered(model, 24)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        theirs = torchattacks.AutoAttack(model.eval(), eps=0.003, n_classes=10, seed=0)
        theirs._autoattack.attacks[-1].n_queries = 100
        expected = answers(model, theirs(images, labels)) != labels
    found = autoattack(model, images, labels, eps=0.003, steps=30, queries=100,
                       generator=generator())  # fmt: skip
    fooled = answers(model, found) != labels
    assert 0 < expected.sum() < 24
    assert fooled.sum() >= expected.sum()


# --- Who is asked, and what survivors get.


def test_survivors_get_the_point_of_highest_cross_entropy() -> None:
    model = Waves(4)
    images, labels = answered(model, 16)
    options: dict[str, Any] = {"eps": 0.002, "generator": generator()}
    first = apgd(model, images, labels, steps=10, **options)
    found = autoattack(model, images, labels, **QUICK, **options)
    robust = answers(model, found) == labels
    assert robust.sum() > 4
    assert torch.equal(found[robust], first[robust])
    fooled_first = answers(model, first) != labels
    assert torch.equal(found[fooled_first], first[fooled_first])


def test_every_attack_asks_only_about_images_that_remain() -> None:
    model = Counting(Waves(4))
    images, labels = answered(model, 16)
    model.asked.clear()
    found = autoattack(model, images, labels, eps=0.004, **QUICK, generator=generator())
    asked = list(model.asked)
    assert asked[:12] == [16] * 12  # the clean images, APGD's start, its ten steps
    assert sorted(asked, reverse=True) == asked
    assert 0 < asked[-1] == (answers(model, found) == labels).sum() < 16
    model.asked.clear()
    autoattack(model, images, labels, eps=1.0, **QUICK, generator=generator())
    assert model.asked == [16] * 12, "nobody remains"


@pytest.mark.parametrize(("classes", "runs"), [(2, 1), (3, 2), (10, 2)])
def test_rand_asks_twenty_times(classes: int, runs: int) -> None:
    model = Counting(Constant(classes))
    images = torch.rand(2, *SHAPE, generator=generator())
    autoattack(model, images, torch.zeros(2).long(), version="rand", steps=3, generator=generator())
    assert len(model.asked) == 20 * (1 + runs * (1 + 3))


# --- What holds for every attack.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_result_does_not_depend_on_batch_mates(norm: str, classes: int) -> None:
    model, images = Waves(classes).double(), torch.rand(9, *SHAPE, generator=generator(1)).double()
    labels = answers(model, images)  # in double, rounding cannot grow to what is seen below
    labels[2] = (labels[2] + 1) % classes
    eps = {"linf": 0.004, "l2": 0.02}[norm]

    def run(rows: Any) -> Tensor:
        return autoattack(
            model, images[rows], labels[rows], norm=norm, eps=eps, **QUICK, generator=generator(7)
        )

    whole = run(slice(None))
    assert 1 < (answers(model, whole) != labels).sum() < len(images)
    order = torch.randperm(len(images), generator=generator(3))
    torch.testing.assert_close(run(order), whole[order], atol=1e-7, rtol=0)
    split = torch.cat([run(part) for part in (slice(0, 1), slice(1, 6), slice(6, None))])
    torch.testing.assert_close(split, whole, atol=1e-7, rtol=0)
    assert torch.equal(whole[2], images[2]), "misclassified anyway"
    check_adversarial(images, whole, norm, eps)
    others = torch.arange(len(images)) != 2
    assert (size(images, whole, norm)[others] > 0).all(), "not the clean image"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_constant_images(value: float, version: str) -> None:
    model = Waves(4)
    images = torch.full((2, *SHAPE), value)
    labels = answers(model, images)
    options: dict[str, Any] = {**QUICK, "version": version, "generator": generator()}
    found = autoattack(model, images, labels, eps=0.05, **options)
    check_adversarial(images, found, "linf", 0.05)
    assert (answers(model, found) != labels).all()


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = Net()
    images, labels = answered(model)
    model.train()
    model.bn.eval()
    modes, outside = [m.training for m in model.modules()], torch.get_rng_state()
    autoattack(model, images, labels, **QUICK, generator=generator())
    with torch.no_grad():
        model.head.bias[:] = float("inf")
    with pytest.raises(UntrustedError, match="logits"):
        autoattack(model, images, labels, **QUICK, generator=generator())
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), outside)
