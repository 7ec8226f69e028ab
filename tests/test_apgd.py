"""APGD: equality with torchattacks' own, known optima, and what no attack may do."""

import contextlib
import io
from functools import partial
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from rlskit.attacks import apgd as apgd_module
from rlskit.attacks.apgd import apgd, apgd_t, targeted_dlr
from rlskit.attacks.losses import LOSSES, margin
from rlskit.errors import RequestError
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

THEIRS = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.03, "l2": 0.12}
ATTACKS: dict[str, Any] = {"apgd": apgd, "apgd-t": apgd_t}


@pytest.fixture
def their_stream(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """Make our starts come from one stream, as torchattacks' come from the global one."""
    stream = generator()
    monkeypatch.setattr(
        apgd_module, "uniform",
        lambda images, streams: 2 * torch.rand(images.shape, generator=stream) - 1,
    )  # fmt: skip
    monkeypatch.setattr(
        apgd_module, "normal",
        lambda images, streams: torch.randn(images.shape, generator=stream),
    )  # fmt: skip
    return stream


def batches(images: Tensor, labels: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    starts = range(0, len(images), n)
    return [(images[start : start + n], labels[start : start + n]) for start in starts]


def upstream(name: str, model: nn.Module, **options: Any) -> Any:
    """A class of torchattacks; it says so on standard output when a model has no parameters."""
    with contextlib.redirect_stdout(io.StringIO()):
        return getattr(torchattacks, name)(model, **options)


# --- Equality with torchattacks 3.5.1.


@pytest.mark.parametrize("norm", THEIRS)
@pytest.mark.parametrize("loss", ["ce-saturating", "dlr", "targeted"])
@pytest.mark.parametrize(("steps", "rho"), [(1, 0.75), (9, 0.3), (100, 0.75), (100, 0.3)])
def test_a_run_is_bit_equal_to_torchattacks(
    norm: str, loss: str, steps: int, rho: float, their_stream: torch.Generator
) -> None:
    # torchattacks' targeted l2 takes the first image's step size for all of a batch: one by one.
    n, at_once = (4, 1) if loss == "targeted" and norm == "l2" else (24, 24)
    model = Waves(5)
    images, labels = answered(model, n)
    options: dict[str, Any] = {"norm": norm, "eps": EPS[norm] / 3, "steps": steps, "rho": rho}
    if loss == "targeted":
        theirs = upstream("APGDT", model, **{**options, "norm": THEIRS[norm]}, n_classes=5)
        theirs.target_class = 2
    else:
        theirs = upstream(
            "APGD",
            model,
            **{**options, "norm": THEIRS[norm]},
            loss=loss.removesuffix("-saturating"),
        )
    fooled = 0
    for image, label in batches(images, labels, at_once):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            highest, robust, _, fooling = theirs.attack_single_run(image, label)
        their_stream.manual_seed(0)
        if loss == "targeted":
            ours = apgd_t(model, image, label, **options, target_classes=1, generator=generator())
        else:
            ours = apgd(model, image, label, **options, loss=loss, generator=generator())
        expected = torch.where((robust == 0)[:, None, None, None], fooling, highest)
        assert torch.equal(ours, expected.detach())
        fooled += int((robust == 0).sum())
    assert 0 < fooled < n, "both what fools and what does not is compared"


@pytest.mark.parametrize("norm", THEIRS)
def test_restarts_and_targets_are_bit_equal_to_torchattacks(
    norm: str, their_stream: torch.Generator
) -> None:
    model = Waves(5)
    images, labels = answered(model, 8)
    labels[:2] = (labels[:2] + 1) % 5  # misclassified from the start
    common = {"eps": EPS[norm] / 2, "steps": 12}
    several = {"restarts": 3, "eot_samples": 2}
    peers: list[tuple[Any, Any]] = [
        (
            partial(apgd, loss="ce-saturating"),
            upstream("APGD", model, **common, norm=THEIRS[norm], n_restarts=3, eot_iter=2),
        ),
        (
            apgd_t,
            upstream(
                "APGDT", model, **common, norm=THEIRS[norm], n_restarts=3, eot_iter=2, n_classes=5
            ),
        ),
    ]
    for ours, theirs in peers:
        for image, label in batches(images, labels, 1 if norm == "l2" else 8):
            with torch.random.fork_rng(devices=[]):
                expected = theirs(image, label)
            their_stream.manual_seed(0)
            own = ours(model, image, label, norm=norm, **common, **several, generator=generator())
            fooled = answers(model, expected) != label
            assert torch.equal(own[fooled], expected[fooled])
            assert torch.equal(answers(model, own) != label, fooled)


@pytest.mark.parametrize("norm", THEIRS)
def test_the_log_odds_take_the_steps_of_the_cross_entropy(
    norm: str, their_stream: torch.Generator
) -> None:
    model = Waves(5).double()
    images, labels = answered(Waves(5))
    options: dict[str, Any] = {"norm": norm, "eps": EPS[norm] / 4, "steps": 8}
    found = []
    for loss in ("ce", "ce-saturating"):
        their_stream.manual_seed(0)
        points = images.double()
        found.append(apgd(model, points, labels, **options, loss=loss, generator=generator()))
    torch.testing.assert_close(*found, atol=1e-9, rtol=0)


# --- Known optima.


@pytest.mark.parametrize("norm", THEIRS)
@pytest.mark.parametrize(
    ("method", "options", "classes"),
    [
        ("apgd", {}, 2),
        ("apgd", {}, 10),
        ("apgd", {"loss": "dlr"}, 3),
        ("apgd-t", {}, 4),
        ("apgd-t", {}, 10),
    ],
)
def test_linear_optimum(method: str, options: Any, classes: int, norm: str) -> None:
    model = Plane(classes)
    images, labels = model.images()
    for scale, fooled in ((0.99, False), (1.01, True)):
        eps = scale * model.distance(norm)
        found = ATTACKS[method](
            model, images, labels, norm=norm, eps=eps, steps=40, **options, generator=generator()
        )
        check_adversarial(images, found, norm, eps)
        assert ((answers(model, found) != labels) == fooled).all()
        assert ((size(images, found, norm) / eps - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_constant_images_reach_the_corner_that_the_box_leaves(value: float) -> None:
    model = Plane(2)
    with torch.no_grad():
        model.bias[0] = 100.0  # out of reach: the point of highest loss comes back
    images, labels = torch.full((2, *SHAPE), value), torch.zeros(2, dtype=torch.long)
    best = (images + 0.02 * model.normal().sign().reshape(SHAPE)).clamp(0, 1)
    found = apgd(model, images, labels, eps=0.02, loss="margin", generator=generator())
    torch.testing.assert_close(found, best, atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", ATTACKS)
@pytest.mark.parametrize("norm", THEIRS)
def test_a_model_without_gradients_keeps_the_start(method: str, norm: str) -> None:
    images, labels = torch.rand(3, *SHAPE, generator=generator()), torch.tensor([0, 1, 0])
    found = ATTACKS[method](
        Constant(), images, labels, norm=norm, eps=0.1, steps=5, generator=generator()
    )
    check_adversarial(images, found, norm, 0.1)
    moved = size(images, found, norm)
    assert moved[1] == 0, "the image that is misclassified anyway"
    assert (moved[[0, 2]] > 0.05).all()


# --- Losses.


def test_targeted_dlr_by_hand() -> None:
    logits = torch.tensor([[7.0, 4.0, 3.0, 1.0, -9.0], [0.0, 2.0, 8.0, 4.0, 0.0]])
    values = targeted_dlr(logits, torch.tensor([0, 1]), torch.tensor([2, 3]))
    torch.testing.assert_close(values, torch.tensor([-(7 - 3) / (7 - 2), -(2 - 4) / (8 - 1)]))
    scaled = targeted_dlr(50 * logits - 3, torch.tensor([0, 1]), torch.tensor([2, 3]))
    torch.testing.assert_close(scaled, values)


@pytest.mark.parametrize(
    ("method", "options", "classes", "named"),
    [("apgd", {"loss": "dlr"}, 2, "3"), ("apgd-t", {}, 3, "4"), ("apgd-t", {}, 2, "4")],
)
def test_too_few_classes_for_dlr(method: str, options: Any, classes: int, named: str) -> None:
    model = Plane(classes).train()
    images, labels = model.images(1)
    with pytest.raises(RequestError, match=rf"at least {named} classes.*{classes}"):
        ATTACKS[method](model, images, labels, **options, generator=generator())
    assert model.training


@pytest.mark.parametrize("target_classes", [1, 3, 9])
def test_number_of_targets(target_classes: int) -> None:
    model = Counting(Constant(5))
    images = torch.rand(2, *SHAPE, generator=generator())
    options: dict[str, Any] = {"steps": 4, "target_classes": target_classes, "restarts": 2}
    apgd_t(model, images, torch.zeros(2).long(), **options, generator=generator())
    # The clean answer; then per run the targets, the start and four steps.
    assert len(model.asked) == 1 + min(target_classes, 4) * 2 * (1 + 1 + 4)


# --- Restarts, samples, survivors.


def test_more_restarts_find_no_lower_loss_and_leave_the_fooled_alone() -> None:
    model = Counting(Waves(5))
    images, labels = answered(model, 24)
    options: dict[str, Any] = {"eps": 0.005, "steps": 5}
    once = apgd(model, images, labels, **options, generator=generator())
    model.asked.clear()
    often = apgd(model, images, labels, **options, restarts=6, generator=generator())
    asked = list(model.asked)
    fooled = answers(model, once) != labels
    assert fooled.any()
    assert torch.equal(often[fooled], once[fooled])
    assert asked[0] == asked[1] == asked[6] == 24
    assert asked[7] == (~fooled).sum(), "the second run asks about those that remain"
    before, after = (LOSSES["ce"](model(x), labels)[~fooled] for x in (once, often))
    assert (after >= before).all()
    assert (after > before).any()


def test_restarts_of_a_target_start_elsewhere() -> None:
    model = Waves(5)
    images, labels = answered(model, 24)
    once, often = (
        apgd_t(
            model, images, labels, eps=0.001, steps=1, restarts=restarts, target_classes=1,
            generator=generator(),
        )
        for restarts in (1, 4)
    )  # fmt: skip
    assert (once != often).flatten(1).any(1).sum() > 3


class Alternating(nn.Module):
    """Calls answer in turn with a gradient of 3 one way and of 1 the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        slope = 3.0 if self.calls % 2 else -1.0
        rival = slope * (images - 0.5).flatten(1).sum(1)
        return torch.stack([torch.full_like(rival, 9.0), rival, rival - 99], 1)


def test_eot_climbs_the_mean_over_samples() -> None:
    model = Alternating()
    images = torch.full((1, *SHAPE), 0.5)
    found = apgd(
        model, images, torch.tensor([0]), eps=0.05, steps=30, loss="margin", eot_samples=2,
        generator=generator(),
    )  # fmt: skip
    assert torch.equal(found, images + 0.05)
    assert model.calls == 2 * (1 + 1 + 30)


class Sleeper(nn.Module):
    """Two calls of three are sure of class 0, the third barely prefers class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        lead = -0.1 if self.calls % 3 == 0 else 4.0
        rival = (images - 0.5).flatten(1).mean(1)
        return torch.stack([torch.full_like(rival, lead), rival], 1)


def test_the_answer_is_the_mean_over_samples_not_the_last() -> None:
    images = torch.full((1, *SHAPE), 0.5)
    model = Sleeper()
    found = apgd(
        model, images, torch.tensor([0]), eps=0.05, steps=10, restarts=2, eot_samples=3,
        generator=generator(),
    )  # fmt: skip
    torch.testing.assert_close(found, images + 0.05, atol=1e-6, rtol=0)
    # Judged by the last call of each three, the image would be fooled from the start.
    assert model.calls == 3 * (1 + 2 * (1 + 10))


# --- What holds for every attack.


@pytest.mark.parametrize("method", ATTACKS)
@pytest.mark.parametrize("norm", THEIRS)
def test_a_result_does_not_depend_on_batch_mates(method: str, norm: str) -> None:
    model, images = Net().double(), torch.rand(12, *SHAPE, generator=generator(1)).double()
    labels = answers(model, images)  # in double, rounding cannot grow to what is seen below
    labels[2] = (labels[2] + 1) % 5

    def run(rows: Any, seed: int = 7) -> Tensor:
        found: Tensor = ATTACKS[method](
            model, images[rows], labels[rows], norm=norm, eps=EPS[norm], steps=10, restarts=2,
            generator=generator(seed),
        )  # fmt: skip
        return found

    whole = run(slice(None))
    assert 0 < (answers(model, whole) != labels).sum() < len(images)
    order = torch.randperm(len(images), generator=generator(3))
    torch.testing.assert_close(run(order), whole[order], atol=1e-9, rtol=0)
    split = torch.cat([run(part) for part in (slice(0, 1), slice(1, 6), slice(6, None))])
    torch.testing.assert_close(split, whole, atol=1e-9, rtol=0)
    assert torch.equal(run(slice(None)), whole)
    assert not torch.equal(run(slice(None), seed=8), whole)
    assert torch.equal(whole[2], images[2]), "misclassified anyway"
    check_adversarial(images, whole, norm, EPS[norm])
    others = torch.arange(len(images)) != 2
    assert (size(images, whole, norm)[others] > EPS[norm] / 10).all(), "not the clean image"


@pytest.mark.parametrize("method", ATTACKS)
def test_the_model_and_the_random_state_are_left_as_they_were(method: str) -> None:
    model = Net()
    images, labels = answered(model)
    before = images.clone()
    in_eval = ATTACKS[method](model, images, labels, steps=5, generator=generator())
    model.train()
    model.bn.eval()
    modes, outside = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():
        in_train = ATTACKS[method](model, images, labels, steps=5, generator=generator())
    assert torch.equal(in_train, in_eval)
    assert not in_train.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), outside)
    assert torch.equal(images, before)


def test_survivors_come_back_where_the_loss_is_highest() -> None:
    model = Plane(2)
    images, labels = model.images()
    eps = 0.9 * model.distance("linf")
    found = apgd(model, images, labels, eps=eps, generator=generator())
    lead = margin(model(images), labels) - eps * model.normal().abs().sum()
    torch.testing.assert_close(margin(model(found), labels), lead, atol=1e-5, rtol=0)
