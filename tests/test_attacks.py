"""The five attacks: known optima, equality with torchattacks, and what no attack may do."""

import contextlib
import copy
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlskit.attacks import ATTACKS, prepare
from rlskit.attacks import apgd as apgd_module
from rlskit.attacks.cw import cw
from rlskit.attacks.deepfool import BEYOND, deepfool
from rlskit.attacks.ead import ead
from rlskit.attacks.losses import LOSSES, gradient, margin, mean_over_calls, objective
from rlskit.attacks.minimum_norm import search_constant, wins
from rlskit.attacks.pgd import pgd
from rlskit.attacks.randomness import image_generators
from rlskit.attacks.targets import choose_targets
from rlskit.errors import RequestError, UntrustedError
from rlskit.pixels import perturbation_norms
from rlskit.seeds import Purpose
from small_models import Constant, generator

SHAPE = (3, 4, 4)

QUICK: dict[str, dict[str, Any]] = {
    "fgsm": {"eps": 0.05},
    "pgd": {"eps": 0.05},
    "pgd-l2": {"eps": 0.5},
    "bim": {"eps": 0.05},
    "mifgsm": {"eps": 0.05},
    "eotpgd": {"eps": 0.05},
    "apgd-ce": {"eps": 0.05, "steps": 10},
    "apgd-dlr": {"eps": 0.05, "steps": 10},
    "apgd-t": {"eps": 0.05, "steps": 10},
    "square": {"eps": 0.1, "steps": 30},
    "apgd-l1": {"eps": 1, "steps": 10},
    "inward": {"eps": 0.05, "steps": 5, "restarts": 3},
    "autoattack": {"eps": 0.05, "steps": 5, "queries": 20},
    "arc": {"eps": 0.05},
    "mora": {"eps": 0.05},
    "noise": {"eps": 0.05},
    "fab": {"steps": 10},
    "ddn": {"steps": 30},
    "fmn": {"steps": 30},
    "sigma-zero": {"steps": 15},
    "jsma": {},
    "pixle": {"restarts": 3, "steps": 3},
    "onepixel": {"pixels": 8, "steps": 3},
    "deepfool": {},
    "cw": {"c": 20, "steps": 60, "lr": 0.05},
    "ead": {"c": 20, "steps": 60, "lr": 0.03},
}
"""Options with which each attack succeeds on a small net in little time."""

MINIMUM_NORM = ["deepfool", "cw", "ead", "ddn", "fmn", "sigma-zero"]

adv_lib = pytest.mark.skipif(
    importlib.util.find_spec("adv_lib") is None, reason="adv-lib is not installed"
)

GRADIENT = [method for method, attack in ATTACKS.items() if attack.needs == "gradients"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these, a second thread on a busy machine costs a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Linear(nn.Module):
    """Logits W (x - 0.5) + b: class 0 leads near 0.5, and every optimum lies inside [0, 1].

    Class 1 follows by 0.1, and every further class by `gap` more.
    """

    def __init__(self, classes: int, gap: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        rng = generator(seed)
        self.weight = nn.Parameter(0.2 * torch.randn(classes, math.prod(SHAPE), generator=rng))
        self.bias = nn.Parameter(0.1 - gap * (torch.arange(classes) - 1))
        with torch.no_grad():
            self.bias[0] = 0.2

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T + self.bias


class Blowup(nn.Module):
    """Finite logits on [0, 1], but gradients that are not: sqrt at 0."""

    def forward(self, images: Tensor) -> Tensor:
        root = (0 * images).sqrt().flatten(1).sum(1, keepdim=True)
        return torch.cat([root + 1, root * 2], 1)


class SmallNet(nn.Module):
    """A convolution, BatchNorm and Dropout, whose modes matter, and a linear head."""

    def __init__(self, seed: int, classes: int = 4, shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__()
        channels, height, width = shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 8, 3, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(8 * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.dropout(self.bn(self.conv(images)).tanh())
        logits: Tensor = self.head(features.flatten(1))
        return logits


def net_and_images(seed: int = 0, n: int = 12) -> tuple[SmallNet, Tensor, Tensor]:
    """A small net, images, and labels that are its own answers."""
    model = SmallNet(seed)
    images = torch.rand(n, *SHAPE, generator=generator(seed + 1))
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    return model, images, labels


def run(method: str, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    attack = prepare(method, **(QUICK[method] | options))
    return attack(model, images, labels, generator=generator())


# --- Known optima: on a linear model the boundary with class k is a plane.


def planes(model: Linear, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's leads over the other classes `[B, K-1]`, and the planes' normals."""
    logits = model(images).detach()
    others = torch.stack([torch.arange(len(row))[torch.arange(len(row)) != y]
                          for row, y in zip(logits, labels, strict=True)])  # fmt: skip
    leads = logits.gather(1, labels[:, None]) - logits.gather(1, others)
    weight = model.weight.detach()
    return leads.double(), (weight[labels][:, None] - weight[others]).double()


def closest(dual: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Distance to the nearest plane in the norm whose dual is given."""
    return lambda leads, normals: (leads / normals.norm(p=dual, dim=2)).amin(1)


def closest_elastic(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Least |d|_2^2 + beta |d|_1 on a plane: d_i is w_i t shrunk by beta/2; t by bisection."""

    def distance(leads: Tensor, normals: Tensor) -> Tensor:
        w = normals.abs()
        low, high = torch.zeros_like(leads), torch.full_like(leads, 1e3)
        for _ in range(100):
            t = (low + high) / 2
            d = (t[..., None] * w - beta / 2).clamp_min(0)
            reached = (w * d).sum(2) >= leads
            low, high = torch.where(reached, low, t), torch.where(reached, t, high)
        return (d.square().sum(2) + beta * d.sum(2)).amin(1)

    return distance


def elastic(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(clean: Tensor, adversarial: Tensor) -> Tensor:
        norms = perturbation_norms(clean, adversarial)
        return norms["l2"].square() + beta * norms["l1"]

    return distance


SEARCH = {"search_steps": 9, "steps": 250, "kappa": 0, "lr": 0.003}
OPTIMA = [
    ("deepfool", {"norm": "l2", "overshoot": 0.005}, "l2", closest(2), 0.01),
    ("deepfool", {"norm": "linf", "overshoot": 0.005}, "linf", closest(1), 0.01),
    ("cw", SEARCH | {"c": 1}, "l2", closest(2), 0.05),
    ("ead", SEARCH | {"beta": 2, "decision_rule": "l1", "lr": 0.02}, "l1", closest(math.inf), 0.05),
    ("ead", SEARCH | {"beta": 0.05}, elastic(0.05), closest_elastic(0.05), 0.05),
    (
        "ead",
        SEARCH | {"beta": 0.02, "decision_rule": "l1", "optimizer": "fista"},
        "l1",
        closest(math.inf),
        0.05,
    ),
]


@pytest.mark.parametrize(
    ("method", "options", "norm", "optimum", "tolerance", "classes"),
    # two classes are a case of their own to DeepFool only
    [*[(*one, 10) for one in OPTIMA], *[(*one, 2) for one in OPTIMA[:2]]],
)
def test_linear_optimum(
    method: str, options: Any, norm: Any, optimum: Any, tolerance: float, classes: int
) -> None:
    # C&W and EAD descend to the boundary of the largest rival, so it must be the nearest one too.
    model = Linear(classes, gap=0.01 if method == "deepfool" else 0.3)
    images = 0.5 + 0.02 * torch.randn(16, *SHAPE, generator=generator(5))
    labels = model(images).argmax(1)
    adversarial = run(method, model, images, labels, **(QUICK[method] | options))
    assert (model(adversarial).argmax(1) != labels).all()
    best = optimum(*planes(model, images, labels))
    if isinstance(norm, str):
        distance = perturbation_norms(images, adversarial)[norm]
    else:
        distance = norm(images, adversarial)
    ratio = distance / best
    assert ratio.min() >= 1 - 1e-3
    assert ratio.max() <= 1 + tolerance, ratio


def test_fgsm_on_a_linear_model() -> None:
    model = Linear(2)
    images = torch.rand(5, *SHAPE, generator=generator(1))
    labels = torch.tensor([0, 1, 0, 1, 0])
    away = (model.weight[1] - model.weight[0]).sign().reshape(SHAPE)
    expected = torch.stack(
        [
            (x + 0.07 * away * (1 if y == 0 else -1)).clamp(0, 1)
            for x, y in zip(images, labels, strict=True)
        ]
    )
    assert torch.equal(run("fgsm", model, images, labels, eps="0.07"), expected.detach())


# --- Equality with torchattacks.


@pytest.mark.parametrize(
    ("method", "options", "theirs"),
    [
        ("fgsm", {"eps": 0.03}, lambda m: torchattacks.FGSM(m, eps=0.03)),
        ("pgd", {}, lambda m: torchattacks.PGD(m, eps=0.01, alpha=0.01 / 10, steps=10)),
        ("pgd-l2", {}, lambda m: torchattacks.PGDL2(m, eps=0.5, alpha=0.5 / 10, steps=10)),
        ("bim", {"steps": 3}, lambda m: torchattacks.BIM(m, eps=0.01, alpha=0.01 / 10, steps=3)),
        ("mifgsm", {}, lambda m: torchattacks.MIFGSM(m, eps=0.01, alpha=0.01 / 10, steps=10)),
        ("eotpgd", {}, lambda m: torchattacks.EOTPGD(m, eps=0.01, alpha=0.01 / 10, steps=10)),
        (
            "deepfool",
            {"steps": 4, "overshoot": 0.1},
            lambda m: torchattacks.DeepFool(m, steps=4, overshoot=0.1),
        ),
        (
            "cw",
            {"c": 2, "kappa": 0.2, "steps": 15, "lr": 0.1},
            lambda m: torchattacks.CW(m, c=2, kappa=0.2, steps=15, lr=0.1),
        ),
        (
            "ead",
            {"c": 200, "steps": 12, "search_steps": 2},
            lambda m: torchattacks.EADEN(m, 0.1, 0.01, 2, 12, initial_const=200, beta=0.01),
        ),
        (
            "ead",
            {"c": 200, "steps": 12, "decision_rule": "l1"},
            lambda m: torchattacks.EADL1(m, 0.1, 0.01, 1, 12, initial_const=200, beta=0.01),
        ),
    ],
)
def test_the_engine_torchattacks_is_torchattacks(
    method: str, options: dict[str, Any], theirs: Any
) -> None:
    model, images, labels = net_and_images()
    torch.manual_seed(7)
    expected = theirs(model)(images, labels)
    after = torch.get_rng_state()
    model.zero_grad()

    torch.manual_seed(123)
    outside = torch.get_rng_state()
    mine = generator(7)
    attack = prepare(method, engine="torchattacks", **options)
    upstream = ATTACKS[method].upstream  # called without the checks: its EAD leaves [0, 1]
    assert upstream is not None
    actual = upstream(model, images, labels, generator=mine, **attack.params)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, images)
    assert torch.equal(mine.get_state(), after), "the generator advances as the global one would"
    assert torch.equal(torch.get_rng_state(), outside), "the global state is left alone"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "method", [name for name, attack in ATTACKS.items() if attack.random and not attack.borrowed]
)
def test_random_numbers_do_not_hang_on_the_default_type(method: str) -> None:
    model, images, labels = net_and_images()
    more = {"norm": "l2"} if method == "square" else {}
    expected = run(method, model, images, labels, **more)
    torch.set_default_dtype(torch.float64)
    try:
        actual = run(method, model, images, labels, **more)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["apgd-ce", "apgd-t", "square", "autoattack", "fab"])
def test_what_reseeds_itself_upstream_follows_our_seed(method: str) -> None:
    model, images, labels = net_and_images()
    options: dict[str, Any] = {} if method == "autoattack" else {"steps": 5}
    attack = prepare(method, engine="torchattacks", **options, eps=None if method == "fab" else 0.5)
    first, again, other = (
        attack(model, images, labels, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    if method != "fab":  # without restarts it draws nothing
        assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("method", "options", "theirs"),
    [
        ("fgsm", {"eps": 0.03}, lambda m: torchattacks.FGSM(m, eps=0.03)),
        ("pgd", {}, lambda m: torchattacks.PGD(m, eps=0.01, alpha=0.01 / 10, steps=10)),
        (
            "pgd",
            {"eps": 0.1, "steps": 3, "step_size": 0.05, "random_start": False},
            lambda m: torchattacks.PGD(m, eps=0.1, alpha=0.05, steps=3, random_start=False),
        ),
        ("pgd-l2", {}, lambda m: torchattacks.PGDL2(m, eps=0.5, alpha=0.5 / 10, steps=10)),
        ("bim", {"steps": 3}, lambda m: torchattacks.BIM(m, eps=0.01, alpha=0.01 / 10, steps=3)),
        (
            "mifgsm",
            {"momentum": 0.7},
            lambda m: torchattacks.MIFGSM(m, eps=0.01, alpha=0.01 / 10, steps=10, decay=0.7),
        ),
    ],
)
def test_ours_is_bit_equal_to_torchattacks_from_the_same_start(
    method: str, options: dict[str, Any], theirs: Any
) -> None:
    model, images, labels = net_and_images()
    ours = prepare(method, **options, loss="ce-saturating")
    streams = image_generators(images, generator(7), Purpose.START, 0)
    for image, label, stream in zip(
        torch.split(images, 1), torch.split(labels, 1), streams, strict=True
    ):
        torch.manual_seed(stream.initial_seed())
        expected = theirs(model)(image, label)
        assert torch.equal(ours(model, image, label, generator=generator(7)), expected)
        assert not torch.equal(expected, image)


def test_a_batch_of_a_power_of_two_is_bit_equal_to_torchattacks_too() -> None:
    # torchattacks averages the loss over the batch, which rounds unless it divides by 2^n.
    model, images, labels = net_and_images(n=16)
    attack = torchattacks.PGD(model, eps=0.1, alpha=0.03, steps=10, random_start=False)
    expected = attack(images, labels)
    ours = prepare("pgd", eps=0.1, step_size=0.03, random_start=False, loss="ce-saturating")
    assert torch.equal(ours(model, images, labels, generator=generator()), expected)


# --- What only the ascent has: losses, restarts, momentum, targets, samples of a random model.


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["pgd", "pgd-l2"])
def test_every_loss_reaches_the_optimum_of_a_linear_model(method: str, loss: str) -> None:
    # Between two classes: the gradient is the plane's normal, whatever the loss.
    model = Linear(3, gap=30)
    images = 0.5 + 0.02 * torch.randn(8, *SHAPE, generator=generator(5))
    labels = torch.zeros(8, dtype=torch.long)
    leads, normals = planes(model, images, labels)
    dual = 1 if method == "pgd" else 2
    least = closest(dual)(leads, normals)
    assert (model(images).argmax(1) == 0).all()
    for scale, fooled in ((0.99, 0), (1.01, 1)):
        for image, label, distance in zip(
            torch.split(images, 1), torch.split(labels, 1), least, strict=True
        ):
            eps = scale * distance.item()
            adversarial = run(method, model, image, label, eps=eps, steps=40, loss=loss)
            assert (model(adversarial).argmax(1) != label).item() == fooled


def test_restarts_keep_the_worst_of_their_runs() -> None:
    model, images, labels = net_and_images(5, n=24)
    options = {"eps": 0.03, "steps": 1, "step_size": 0.01}
    once = margin(model(run("pgd", model, images, labels, **options)), labels)
    often = margin(model(run("pgd", model, images, labels, restarts=8, **options)), labels)
    assert (often <= once).all()
    assert (often < once).float().mean() > 0.5


@pytest.mark.parametrize(
    "method",
    [m for m, a in ATTACKS.items() if "target" in a.defaults and m != "jsma"],  # it only adds
)
@pytest.mark.parametrize("target", ["random", "least-likely", 2])
def test_targeted_attacks_reach_their_targets(method: str, target: str | int) -> None:
    model, images, labels = net_and_images(n=16)
    options = {"c": 50, "steps": 100} if method in ("cw", "ead") else {"eps": 0.9}
    options = {} if method in ("ddn", "fmn", "sigma-zero") else options
    options = {"eps": 3} if method == "pgd-l2" else options
    wanted = choose_targets(target, model, images, labels, generator())
    adversarial = run(method, model, images, labels, target=target, **options)
    asked = wanted != labels
    hit = model(adversarial).argmax(1) == wanted
    assert asked.any()
    assert hit[asked].float().mean() > 0.8
    assert torch.equal(adversarial[~asked], images[~asked])


def test_targets_by_hand() -> None:
    model, images, labels = net_and_images(n=64)
    least = choose_targets("least-likely", model, images, labels, generator())
    assert torch.equal(least, model(images).argmin(1))
    drawn = choose_targets("random", model, images, labels, generator())
    assert (drawn != labels).all()
    assert set(((drawn - labels) % 4).tolist()) == {1, 2, 3}
    assert torch.equal(
        drawn[5:6], choose_targets("random", model, images[5:6], labels[5:6], generator())
    )
    assert choose_targets(3, model, images, labels, generator()).tolist() == [3] * 64
    with pytest.raises(RequestError, match="`target` 4 is no class: there are 4, from 0"):
        choose_targets(4, model, images, labels, generator())


class Coin(nn.Module):
    """Its gradient is +1 or -1 by turns, and 3 at every third call."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        slope = (1.0, -1.0, 3.0)[self.calls % 3]
        self.calls += 1
        rise = slope * (images - 0.5).flatten(1).sum(1)
        return torch.stack([-rise, rise], 1)


@pytest.mark.parametrize(("samples", "sign"), [(1, 1), (2, 0), (3, 1)])
def test_eot_sums_gradients_over_calls(samples: int, sign: int) -> None:
    images, labels = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 0])
    adversarial = run("fgsm", Coin(), images, labels, eot_samples=samples)
    assert torch.equal(adversarial, images + 0.05 * sign)


def test_losses_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    ce, saturating = (LOSSES[name](logits, torch.tensor([1])) for name in ("ce", "ce-saturating"))
    assert saturating.item() == pytest.approx(2.18518, abs=1e-5)
    assert ce.item() == pytest.approx(2.06588, abs=1e-5)  # log(e^3 + e^0 + e^-1) - 1
    torch.testing.assert_close(F.softplus(ce), saturating)
    assert LOSSES["margin"](logits, torch.tensor([1])).item() == 2
    assert LOSSES["dlr"](logits, torch.tensor([1])).item() == pytest.approx(2 / 3)
    assert LOSSES["dlr"](logits, torch.tensor([0])).item() == pytest.approx(-2 / 3)
    with pytest.raises(RequestError, match="`loss='dlr'` needs at least 3 classes, not 2"):
        LOSSES["dlr"](logits[:, :2], torch.tensor([0]))


def test_ce_has_the_direction_of_the_cross_entropy_and_never_saturates() -> None:
    model, images, labels = net_and_images()
    textbook, ours = (
        gradient(model, images, labels, objective(loss)).flatten(1)
        for loss in ("ce-saturating", "ce")
    )
    assert torch.cosine_similarity(textbook, ours).min() > 1 - 1e-5
    for scale in (1e-6, 1e3, 1e20):
        for view in (lambda x: scale * model(x), lambda x: (scale * model(x)).log_softmax(1)):  # noqa: B023
            steep = gradient(view, images, labels, objective("ce")).flatten(1)
            assert steep.isfinite().all()
            assert (steep.abs().amax(1) > 1e-3 * scale * ours.abs().amax(1)).all()


def test_the_mean_over_calls_is_that_of_the_cross_entropy() -> None:
    logits = 4 * torch.randn(3, 6, 5, generator=generator(1), dtype=torch.float64)
    labels = torch.arange(6) % 5
    points = logits.clone().requires_grad_()
    F.cross_entropy(points.flatten(0, 1), labels.repeat(3), reduction="sum").backward()  # type: ignore[no-untyped-call]
    ours = logits.clone().requires_grad_()
    value = objective("ce")(list(ours), labels)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert points.grad is not None
    assert ours.grad is not None
    flat = (points.grad.transpose(0, 1).flatten(1), ours.grad.transpose(0, 1).flatten(1))
    assert torch.cosine_similarity(*flat).min() > 1 - 1e-9
    means = F.cross_entropy(logits.flatten(0, 1), labels.repeat(3), reduction="none")
    torch.testing.assert_close(value.exp(), means.reshape(3, 6).mean(0))
    far = mean_over_calls(torch.tensor([[-900.0], [-901.0]]), odds=True)
    assert far.item() == pytest.approx(-900 + math.log((1 + math.exp(-1)) / 2), abs=1e-3)


class Faint(nn.Module):
    """Logits 3, 2 and 1 whose slopes are those of a plane times any number."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.plane, self.size = Linear(3), size

    def forward(self, images: Tensor) -> Tensor:
        logits = self.plane(images)
        faint: Tensor = torch.tensor([3.0, 2.0, 1.0]) + self.size * (logits - logits.detach())
        return faint


@pytest.mark.parametrize(
    ("norm", "step"), [("linf", [0.06, -0.02]), ("l2", [0.06 / 2**0.5, -0.06 / 2**0.5])]
)
def test_a_step_of_the_other_kind_has_the_same_length(norm: str, step: list[float]) -> None:
    """On logits of slopes 3 and -1: along the gradient in linf, along its sign in l2."""
    plane = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    plane[1].weight.data = torch.tensor([[-1.5, 0.5], [1.5, -0.5]])
    images = torch.full((1, 1, 1, 2), 0.5)
    found = pgd(
        plane, images, torch.tensor([0]), norm=norm, eps=0.06, steps=1, step_size=0.06,
        random_start=False, steepest=False, generator=generator(),
    )  # fmt: skip
    assert (found - images).flatten().tolist() == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_step_in_l2_has_its_length_however_small_the_gradient(
    momentum: float, size: float
) -> None:
    images, labels = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 0])
    options: dict[str, Any] = {"eps": 0.6, "steps": 2, "step_size": 0.3, "random_start": False}
    attack = prepare("pgd-l2", **options, momentum=momentum, loss="margin")
    found = attack(Faint(size), images, labels, generator=generator())
    assert perturbation_norms(images, found)["l2"].tolist() == pytest.approx([0.6, 0.6], rel=1e-3)
    slope = gradient(Faint(size), images, labels, objective("margin"))
    move = apgd_module._move(slope, torch.full((2, 1, 1, 1), 0.3), "l2")
    assert perturbation_norms(images, images + move)["l2"].tolist() == pytest.approx([0.3, 0.3])
    assert not apgd_module._move(0 * slope, torch.full((2, 1, 1, 1), 0.3), "l2").any()


@pytest.mark.parametrize("overshoot", [0.02, 0.2])
def test_deepfool_agrees_with_torchattacks(overshoot: float) -> None:
    model, images, labels = net_and_images(3, n=32)
    theirs = run("deepfool", model, images, labels, overshoot=overshoot, engine="torchattacks")
    ours = deepfool(model, images, labels, overshoot=overshoot, generator=generator())
    theirs_l2 = perturbation_norms(images, theirs)["l2"]
    ratio = perturbation_norms(images, ours)["l2"] / theirs_l2
    assert theirs_l2.min() > 0
    assert (ratio - 1).abs().max() < 0.01, ratio


def test_torchattacks_keeps_stdout_clean_on_a_model_without_parameters() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        adversarial = run("pgd", Constant(3), torch.full((2, *SHAPE), 0.5), torch.tensor([0, 0]))
    assert out.getvalue() == ""
    assert (adversarial - 0.5).abs().max() <= 0.05


# --- What holds for every attack.


@pytest.mark.parametrize("method", ATTACKS)
def test_a_result_does_not_depend_on_batch_mates(method: str) -> None:
    model, images, labels = net_and_images(1)
    whole = run(method, model, images, labels)
    assert not torch.equal(whole, images)
    order = torch.randperm(len(images), generator=generator(3))
    permuted = run(method, model, images[order], labels[order])
    split = torch.cat(
        [
            run(method, model, images[part], labels[part])
            for part in (slice(0, 1), slice(1, 6), slice(6, None))
        ]
    )
    torch.testing.assert_close(permuted, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ATTACKS)
def test_the_model_is_given_back_as_it_was(method: str) -> None:
    model, images, labels = net_and_images()
    in_eval = run(method, model, images, labels)
    model.train()
    model.bn.eval()  # a frozen BatchNorm inside a training model
    model.conv.weight.requires_grad_(False)
    statistics = model.bn.state_dict()["running_mean"].clone()
    before = [module.training for module in model.modules()]
    with torch.no_grad():  # as a caller that evaluates
        in_train = run(method, model, images, labels)
    assert torch.equal(in_train, in_eval)
    assert not in_train.requires_grad
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model.bn.state_dict()["running_mean"], statistics)
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("method", "engine"),
    [(m, "rlskit") for m in ATTACKS if m != "noise"]
    + [(m, "torchattacks") for m, a in ATTACKS.items() if a.upstream]
    + [pytest.param(m, "adv-lib", marks=adv_lib) for m, a in ATTACKS.items() if a.adv_lib],
)
def test_modes_are_restored_after_an_exception(method: str, engine: str) -> None:
    class OutOfMemory(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3), OutOfMemory()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    outside = torch.get_rng_state()
    attack = prepare(method, engine=engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        attack(model, torch.full((2, *SHAPE), 0.5), torch.tensor([0, 1]), generator=generator())
    assert torch.equal(torch.get_rng_state(), outside)
    assert [module.training for module in model.modules()] == before
    assert before == [True, True, False, False, False]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model._forward_hooks


@pytest.mark.parametrize("method", [m for m in ATTACKS if m != "noise"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_logits_are_not_a_result(method: str, bad: float) -> None:
    model = Linear(4)
    with torch.no_grad():
        model.bias[2] = bad
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        run(method, model, torch.rand(3, *SHAPE), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("method", [m for m in GRADIENT if m not in ("apgd-dlr", "apgd-t")])
def test_non_finite_gradients_are_not_a_result(method: str) -> None:
    with pytest.raises(UntrustedError, match="NaN or infinite gradients"):
        run(method, Blowup(), torch.rand(3, *SHAPE), torch.tensor([0, 0, 0]))


def test_deepfool_passes_the_boundary_by_more_than_rounding() -> None:
    """The same network in float64 rounds otherwise, as it does in other batches."""
    model, images, labels = net_and_images(3, n=32)
    found = deepfool(model, images, labels, overshoot=0.0, generator=generator())
    fooled = model(found).argmax(1) != labels
    assert fooled.float().mean() > 0.5
    precise = copy.deepcopy(model).double()(found.double()).argmax(1) != labels
    assert torch.equal(precise, fooled)


def test_upstream_deepfool_is_caught_where_it_returns_nan() -> None:
    attack = prepare("deepfool", engine="torchattacks")
    with pytest.raises(UntrustedError, match="NaN"):
        attack(Constant(3), torch.rand(2, *SHAPE), torch.tensor([0, 0]), generator=generator())


# --- Minimum-norm attacks.


@pytest.mark.parametrize("method", MINIMUM_NORM)
@pytest.mark.parametrize("optimizer", ["adam", "fista"])
def test_failures_and_mistakes_come_back_bitwise(method: str, optimizer: str) -> None:
    options: dict[str, Any] = {"optimizer": optimizer} if method == "ead" else {}
    model, images, labels = net_and_images()
    wrong = (labels + 1) % 4
    assert torch.equal(run(method, model, images, wrong, **options), images)
    if method in ("cw", "ead"):
        assert torch.equal(run(method, model, images, labels, kappa=1e6, **options), images)
    zeros = torch.zeros(len(images), dtype=torch.long)
    assert torch.equal(run(method, Bowl(), images, zeros, **options), images)


class Bowl(nn.Module):
    """Leads s^2 of class 0: gradients lead to the boundary s = 0, and nothing lies beyond it."""

    def forward(self, images: Tensor) -> Tensor:
        s = (images - 0.4).flatten(1).sum(1)
        return torch.stack([s**2, torch.zeros_like(s)], 1)


@pytest.mark.parametrize("method", MINIMUM_NORM)
def test_a_constant_model_cannot_be_fooled(method: str) -> None:
    images = torch.rand(4, *SHAPE, generator=generator())
    assert torch.equal(run(method, Constant(3), images, torch.tensor([0, 0, 1, 2])), images)


@pytest.mark.parametrize("kappa", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("method", "optimizer"), [("cw", ""), ("ead", "adam"), ("ead", "fista")])
def test_the_returned_image_itself_has_the_confidence(
    method: str, optimizer: str, kappa: float
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer} if optimizer else {}
    model, images, labels = net_and_images(2, n=32)
    adversarial = run(method, model, images, labels, kappa=kappa, c=200, **options)
    lead = margin(model(adversarial), labels)
    changed = (adversarial != images).flatten(1).any(1)
    assert changed.float().mean() > 0.9
    assert (lead[changed] <= -kappa + 1e-6).all()
    assert (lead[changed] < 0).all()


def test_pixels_at_0_and_1_move_under_cw() -> None:
    model, images, _ = net_and_images()
    images = images.round()
    labels = model(images).argmax(1)
    options = {"c": 20, "lr": 0.1, "steps": 200}
    ours = run("cw", model, images, labels, **options)
    theirs = run("cw", model, images, labels, engine="torchattacks", **options)
    assert (model(ours).argmax(1) != labels).all()
    assert torch.equal(theirs, images), "the trap that the shrink avoids"
    assert 0 <= ours.min() <= ours.max() <= 1


@pytest.mark.parametrize("method", MINIMUM_NORM)
def test_log_probabilities_are_attacked_as_logits_are(method: str) -> None:
    model, images, labels = net_and_images(4, n=24)
    view = nn.Sequential(model, nn.LogSoftmax(1))
    on_logits = run(method, model, images, labels)
    on_log_probabilities = run(method, view, images, labels)
    fooled = model(on_logits).argmax(1) != labels
    assert fooled.float().mean() > 0.9
    assert torch.equal(model(on_log_probabilities).argmax(1) != labels, fooled)
    torch.testing.assert_close(on_log_probabilities, on_logits, atol=1e-4, rtol=0)


def test_cw_is_not_stopped_by_its_batch_mates() -> None:
    model = Linear(2)
    images = 0.5 + 0.02 * torch.randn(8, *SHAPE, generator=generator(5))
    far = 0.5 + 0.5 * (model.weight[0] - model.weight[1]).detach().sign().reshape(1, *SHAPE)
    mixed, labels = torch.cat([images, far]), torch.zeros(9, dtype=torch.long)
    options = {"c": 3.0, "steps": 100, "lr": 0.02, "kappa": 0}
    alone = run("cw", model, images, labels[:8], **options)
    together = run("cw", model, mixed, labels, **options)
    assert torch.equal(together[8:], far), "the last image is out of reach"
    assert (model(together[:8]).argmax(1) == 1).all()
    torch.testing.assert_close(together[:8], alone, atol=1e-6, rtol=0)


def test_margin_by_hand() -> None:
    logits = torch.tensor([[-1.0, -3.0, -2.0], [5.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    lead = margin(logits, torch.tensor([0, 1, 1]))
    assert lead.tolist() == [1.0, -4.0, 0.0]
    assert wins(lead, 0).tolist() == [False, True, False]  # a tie fools nobody
    assert wins(lead, 4).tolist() == [False, True, False]
    assert wins(lead, 4.1).tolist() == [False, False, False]


def test_search_halves_where_it_won_and_grows_where_it_lost() -> None:
    tried = []
    least = torch.tensor([0.3, 5.0, 1e9])  # constants from which each image falls

    def descend(constant: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(constant.tolist())
        distance = torch.where(constant >= least, constant, torch.inf)
        return constant[:, None, None, None].clone(), distance

    clean = torch.zeros(3, 1, 1, 1)
    best = search_constant(descend, clean, 1.0, 4).flatten()
    assert tried == [
        pytest.approx(row)
        for row in ([1, 1, 1], [0.5, 10, 10], [0.25, 5.5, 100], [0.375, 3.25, 1e3])
    ]
    assert best.tolist() == [0.375, 5.5, 0.0]


@pytest.mark.parametrize("optimizer", ["adam", "fista"])
def test_ead_is_sparse_and_keeps_its_bounds(optimizer: str) -> None:
    model = Linear(2)
    images = 0.5 + 0.02 * torch.randn(8, *SHAPE, generator=generator(5))
    labels = model(images).argmax(1)
    adversarial = ead(
        model, images, labels, c=20, beta=0.05, steps=200, optimizer=optimizer,
        decision_rule="l1", bounds=(0.3, 0.7), generator=generator(),
    )  # fmt: skip
    assert (model(adversarial).argmax(1) != labels).all()
    assert 0.3 <= adversarial.min() < adversarial.max() <= 0.7
    dense = cw(model, images, labels, c=20, steps=200, generator=generator())
    ours, theirs = (perturbation_norms(images, x) for x in (adversarial, dense))
    assert (ours["l0"] < theirs["l0"] / 2).all()


def test_decision_rules_keep_different_iterates() -> None:
    model = Linear(10)
    images = 0.5 + 0.02 * torch.randn(16, *SHAPE, generator=generator(5))
    labels = model(images).argmax(1)
    by_rule = {
        rule: perturbation_norms(
            images, run("ead", model, images, labels, decision_rule=rule, steps=300, beta=0.05)
        )
        for rule in ("en", "l1")
    }
    en, l1 = by_rule["en"], by_rule["l1"]
    assert (l1["l1"] <= en["l1"]).all()
    assert (en["l2"] ** 2 + 0.05 * en["l1"] <= l1["l2"] ** 2 + 0.05 * l1["l1"]).all()
    assert not torch.equal(en["l1"], l1["l1"])


def test_top_classes_limits_the_rivals() -> None:
    # Class 2 is nearest but third by logit: only with three classes is its boundary seen.
    model = Linear(3)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1, 0], model.weight[2, 1] = 0.5, 20.0
        model.bias.copy_(torch.tensor([1.0, 0.9, 0.5]))
    images, labels = torch.full((1, *SHAPE), 0.5), torch.tensor([0])
    options = {"overshoot": 0.01, "norm": "l2"}
    near = run("deepfool", model, images, labels, top_classes=3, **options) - images
    far = run("deepfool", model, images, labels, top_classes=2, **options) - images
    assert near.norm().item() == pytest.approx(BEYOND * 1.01 * 0.5 / 20, rel=1e-4)
    assert far.norm().item() == pytest.approx(BEYOND * 1.01 * 0.1 / 0.5, rel=1e-4)


# --- Any small net, any images.


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(sorted(ATTACKS)),
    seed=st.integers(0, 1000),
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(2, 5),
    size=st.integers(1, 5),
    fill=st.sampled_from(["random", "black", "white", "binary"]),
    eps=st.sampled_from(["0", "2/255", "0.3", "1"]),
)
def test_any_result_is_an_image_inside_its_budget(
    method: str, seed: int, n: int, channels: int, classes: int, size: int, fill: str, eps: str
) -> None:
    classes += 2 * method.startswith("apgd")  # DLR needs four classes
    model = SmallNet(seed, classes, (channels, size, size)).eval()
    images = torch.rand(n, channels, size, size, generator=generator(seed))
    images = {
        "random": images,
        "black": images * 0,
        "white": images * 0 + 1,
        "binary": images.round(),
    }[fill]
    before = images.clone()
    labels = torch.randint(classes, (n,), generator=generator(seed))
    known = ATTACKS[method]
    budget = {"eps": eps} if known.has_budget else {}
    steps = {"steps": 5} if "steps" in known.defaults else {}
    adversarial = run(method, model, images, labels, **budget, **steps)
    assert torch.equal(images, before)
    assert adversarial.shape == images.shape
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    if budget:
        numerator, _, denominator = eps.partition("/")
        largest = float(numerator) / float(denominator or 1)
        moved_by = perturbation_norms(images, adversarial)[known.norms[0]]
        assert moved_by.max() <= largest + 1e-6
    else:  # what moved fools, what did not is bitwise the clean image
        moved = (adversarial != images).flatten(1).any(1)
        assert (model(adversarial).argmax(1) != labels)[moved].all()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(sorted(set(ATTACKS) - {"pixle", "onepixel"})),
    seed=st.integers(0, 1000),
    n=st.integers(2, 4),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(2, 5),
    size=st.integers(2, 5),
    fill=st.sampled_from(["random", "black", "white"]),
)
def test_permuting_and_splitting_any_batch_changes_nothing(
    method: str, seed: int, n: int, channels: int, classes: int, size: int, fill: str
) -> None:
    classes += 2 * method.startswith("apgd")  # DLR needs four classes
    # In float64, where rounding does not reach the sign of a gradient.
    model = SmallNet(seed, classes, (channels, size, size)).eval().double()
    images = torch.rand(n, channels, size, size, generator=generator(seed)).double()
    images = {"random": images, "black": images * 0, "white": images * 0 + 1}[fill]
    with torch.no_grad():
        labels = model(images).argmax(1)
    steps = {"steps": 5} if "steps" in ATTACKS[method].defaults else {}
    whole = run(method, model, images, labels, **steps)
    order = torch.randperm(n, generator=generator(seed))
    permuted = run(method, model, images[order], labels[order], **steps)
    alone = run(method, model, images[-1:], labels[-1:], **steps)
    torch.testing.assert_close(permuted, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, whole[-1:], atol=1e-6, rtol=0)


def test_upstream_says_how_many_classes_it_needs() -> None:
    model, images, labels = net_and_images(3, n=2)
    two = nn.Sequential(model, Kept(2))
    upstream = partial(prepare, engine="torchattacks")
    for method, least in (("apgd-dlr", 3), ("apgd-t", 4), ("autoattack", 4)):
        with pytest.raises(RequestError, match=f"needs at least {least} classes here, not 2"):
            upstream(method)(two, images, labels % 2, generator=generator())
    found = upstream("fab")(two, images, labels % 2, generator=generator())
    assert found.shape == images.shape


class Kept(nn.Module):
    """The first logits only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, : self.classes]


def test_upstream_ead_needs_ten_steps() -> None:
    with pytest.raises(RequestError, match="`steps` of at least 10 here, not 9"):
        run("ead", Linear(2), torch.rand(1, *SHAPE), torch.tensor([0]), engine="torchattacks",
            optimizer=None, steps=9)  # fmt: skip
