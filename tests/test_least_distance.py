"""DDN, FMN, sigma-zero and APGD-l1: known optima, their peer adv-lib, and its engine."""

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peers import run_adv_lib
from rlskit.attacks import apgd_l1 as apgd_l1_module
from rlskit.attacks import prepare
from rlskit.attacks.apgd_l1 import apgd_l1, project
from rlskit.attacks.ddn import ddn
from rlskit.attacks.fmn import fmn
from rlskit.attacks.losses import margin
from rlskit.attacks.sigma_zero import sigma_zero
from rlskit.errors import RequestError
from rlskit.pixels import perturbation_norms
from small_models import generator, network

pytestmark = [
    # What adv-lib imports where it is loaded.
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]

needs_adv_lib = pytest.mark.skipif(
    importlib.util.find_spec("adv_lib") is None,
    reason="adv-lib is not installed: PIP_CONSTRAINT=constraints.txt pip install -e '.[adv-lib]'",
)


class Linear(nn.Module):
    """Near 0.5 class 0 leads class 1 by 0.1, and the others by so much that they do not matter."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = 0.2 * torch.randn(classes, 48, generator=generator())
        self.bias = torch.tensor([0.1, 0.0, *[-9.0] * (classes - 2)])

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T + self.bias


def least(model: Linear, images: Tensor, norm: str) -> Tensor:
    """Each image's distance to the plane between classes 0 and 1, `[B]`."""
    slope = model.weight[0] - model.weight[1]
    lead = (images.flatten(1) - 0.5) @ slope + model.bias[0] - model.bias[1]
    if norm != "l0":
        dual = {"l1": math.inf, "l2": 2, "linf": 1}[norm]
        steepness: Tensor = torch.linalg.vector_norm(slope, dual)
        return lead / steepness
    room = torch.where(slope > 0, images.flatten(1), 1 - images.flatten(1))
    gains = (slope.abs() * room).sort(dim=1, descending=True).values.cumsum(1)
    return (gains <= lead[:, None]).sum(1) + 1


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    ("method", "norm", "tolerance"),
    [
        ("ddn", "l2", 0.03),
        ("fmn", "l2", 0.03),
        ("fmn", "linf", 0.03),
        ("fmn", "l1", 0.03),
        ("fmn", "l0", 0),
        ("sigma-zero", "l0", 0.34),  # one value more than the three that are enough
    ],
)
def test_the_optimum_of_a_linear_model(
    method: str, norm: str, tolerance: float, classes: int
) -> None:
    model = Linear(classes)
    model.bias[0] += 0.9 * (norm == "l0")  # some ten values, not one
    images = 0.5 + 0.02 * torch.randn(12, 3, 4, 4, generator=generator(5))
    labels = torch.zeros(12, dtype=torch.long)
    options = {"norm": norm} if method == "fmn" else {}
    attack = prepare(method, steps=100, **options)
    adversarial = attack(model, images, labels, generator=generator())
    assert (model(adversarial).argmax(1) == 1).all()
    best = least(model, images, norm)
    ratio = perturbation_norms(images, adversarial)[norm] / best
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1 + tolerance
    assert norm != "l0" or best.min() > 2


def test_apgd_l1_reaches_the_optimum_of_a_linear_model() -> None:
    model, labels = Linear(5), torch.zeros(1, dtype=torch.long)
    for seed in range(2):
        image = 0.5 + 0.02 * torch.randn(1, 3, 4, 4, generator=generator(seed))
        distance = least(model, image, "l1").item()
        for eps, answer in ((0.99 * distance, 0), (1.01 * distance, 1)):
            found = apgd_l1(model, image, labels, eps=eps, generator=generator())
            assert model(found).argmax(1).item() == answer
            assert perturbation_norms(image, found)["l1"].item() <= eps + 1e-12


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 10.0, 1000.0])
def test_the_projection_is_the_nearest_point_of_ball_and_box(eps: float) -> None:
    images = torch.rand(8, 3, 5, 5, generator=generator(1))
    images[:4] = images[:4].round()
    x = images + torch.randn(8, 3, 5, 5, generator=generator(2))
    found = project(x, images, eps)
    assert 0 <= found.min() <= found.max() <= 1
    assert perturbation_norms(images, found)["l1"].max() <= eps + 1e-12
    # The nearest point shrinks all changes by one amount, and then meets the box.
    clean, delta = images.double(), x.double() - images.double()

    def shrunk(amount: Tensor) -> Tensor:
        size = (delta.abs() - amount[:, None, None, None]).clamp_min(0)
        return (clean + delta.sign() * size).clamp(0, 1) - clean

    low, high = torch.zeros(8).double(), delta.abs().amax((1, 2, 3))
    for _ in range(60):
        middle = (low + high) / 2
        within = shrunk(middle).abs().sum((1, 2, 3)) <= eps
        low, high = torch.where(within, low, middle), torch.where(within, middle, high)
    torch.testing.assert_close(found.double(), clean + shrunk(high), atol=2e-7, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0"])
def test_fmn_follows_gradients_of_any_size(norm: str) -> None:
    model = network(0).eval()
    images = torch.rand(12, 1, 8, 8, generator=generator(1))
    labels = model(images).argmax(1)

    def found(size: float) -> Tensor:
        view = nn.Sequential(model, Scaled(size))
        return fmn(view, images, labels, norm=norm, steps=15, generator=generator())

    assert (model(found(1)).argmax(1) != labels).all()
    assert torch.equal(found(2.0**-60), found(1))


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


# --- adv-lib: in float64, where rounding does not decide which way an iterate goes.


def net_and_images(n: int = 16) -> tuple[nn.Module, Tensor, Tensor]:
    model = network(0).double().eval()
    images = torch.rand(n, 1, 8, 8, generator=generator(1)).double()
    return model, images, model(images).argmax(1)


def compared(
    model: nn.Module, images: Tensor, labels: Tensor, ours: Tensor, theirs: Tensor, norm: str
) -> Tensor:
    """Our distances over adv-lib's, where both fool the model."""
    both = (margin(model(ours), labels) < 0) & (margin(model(theirs), labels) < 0)
    assert both.sum() > 5
    mine, other = (perturbation_norms(images, x)[norm][both] for x in (ours, theirs))
    return mine / other


@needs_adv_lib
def test_ddn_is_adv_libs_and_looks_at_where_the_last_step_ends() -> None:
    model, images, labels = net_and_images()
    ours = ddn(model, images, labels, steps=30, generator=generator())
    theirs = run_adv_lib("ddn", model, images, labels, {"steps": 30})
    ratio = compared(model, images, labels, ours, theirs, "l2")
    assert (model(ours).argmax(1) != labels).all()
    assert 0.949 < ratio.min() < 0.96, "one step of 5 % further, for some"
    assert ratio.max() <= 1 + 1e-5


@needs_adv_lib
@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0"])
def test_fmn_without_overshoot_is_adv_libs_and_with_it_fools_more(norm: str) -> None:
    model, images, labels = net_and_images()
    options: dict[str, Any] = {"norm": norm, "steps": 60}
    theirs = run_adv_lib("fmn", model, images, labels, options)
    plain = fmn(model, images, labels, overshoot=0, generator=generator(), **options)
    ratio = compared(model, images, labels, plain, theirs, norm)
    assert (ratio - 1).abs().max() < 2e-3
    ours = fmn(model, images, labels, generator=generator(), **options)
    ratio = compared(model, images, labels, ours, theirs, norm)
    assert ratio.median() <= 1 + 1e-3
    assert ratio.max() <= 1.02
    assert (model(ours).argmax(1) != labels).all()


@needs_adv_lib
def test_sigma_zero_is_adv_libs() -> None:
    model, images, labels = net_and_images()
    ours = sigma_zero(model, images, labels, steps=40, generator=generator())
    theirs = run_adv_lib("sigma-zero", model, images, labels, {"steps": 40})
    assert (model(ours).argmax(1) != labels).all()
    assert compared(model, images, labels, ours, theirs, "l0").max() <= 1
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@needs_adv_lib
@pytest.mark.parametrize("eps", [0.25, 1.0])
def test_apgd_l1_is_adv_libs_but_for_the_start_and_for_rounding_down(
    monkeypatch: pytest.MonkeyPatch, eps: float
) -> None:
    model, images, labels = net_and_images()
    torch.manual_seed(7)
    start = torch.randn_like(images)
    monkeypatch.setattr(apgd_l1_module, "normal", lambda *_: start)
    step = apgd_l1_module._sparse_step
    monkeypatch.setattr(
        apgd_l1_module,
        "_sparse_step",
        lambda slope, width, length: step(slope, width.ceil(), length),
    )
    ours = apgd_l1(model, images, labels, eps=eps, steps=60, generator=generator())
    torch.manual_seed(7)
    theirs = run_adv_lib("apgd-l1", model, images, labels, {"eps": eps, "steps": 60})
    fooled, also = (model(x).argmax(1) != labels for x in (theirs, ours))
    assert fooled.any()
    assert torch.equal(also, fooled)
    torch.testing.assert_close(ours[fooled], theirs[fooled], atol=1e-6, rtol=0)
    assert torch.equal(theirs[~fooled], images[~fooled])
    assert (ours != images).flatten(1).any(1).all(), "the point of highest loss, not the clean one"


# --- The engine adv-lib.


ENGINE: list[tuple[str, dict[str, Any]]] = [
    ("ddn", {"steps": 20}),
    ("fmn", {"norm": "l1", "steps": 20}),
    ("fmn", {"norm": "linf", "steps": 20}),
    ("sigma-zero", {"steps": 20}),
]


@needs_adv_lib
@pytest.mark.parametrize(("method", "options"), ENGINE)
def test_the_engine_adv_lib_is_adv_lib(method: str, options: dict[str, Any]) -> None:
    model, images, labels = net_and_images()
    labels[:2] = (labels[:2] + 1) % 10
    attack = prepare(method, engine="adv-lib", **options)
    theirs = run_adv_lib(method, model, images[2:], labels[2:], {"norm": "l2", **options})
    fooled = margin(model(theirs), labels[2:]) < 0
    theirs = torch.where(fooled[:, None, None, None], theirs, images[2:])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = attack(model, images, labels, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(whole[2:], theirs, atol=1e-9, rtol=0)
    assert torch.equal(whole[:2], images[:2]), "the model errs there anyway"
    assert not torch.equal(whole[2:], images[2:])
    alone = attack(model, images[5:6], labels[5:6], generator=generator())
    torch.testing.assert_close(alone, whole[5:6], atol=1e-9, rtol=0)


class Steps(nn.Module):
    """Sees only which values are above 0.5, so that all its gradients are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(5, 48, generator=generator())

    def forward(self, images: Tensor) -> Tensor:
        return ((images > 0.5).to(images) + 0 * images).flatten(1) @ self.weight.T


@needs_adv_lib
def test_what_adv_lib_draws_is_the_images_own() -> None:
    model = Steps()
    images = torch.rand(6, 3, 4, 4, generator=generator(1))
    labels = model(images).argmax(1)
    attack = prepare("ddn", engine="adv-lib", steps=5)
    whole = attack(model, images, labels, generator=generator())
    assert not torch.equal(whole, images), "noise, where there is no gradient"
    assert torch.equal(attack(model, images[4:], labels[4:], generator=generator()), whole[4:])
    assert not torch.equal(attack(model, images, labels, generator=generator(1)), whole)


@needs_adv_lib
def test_adv_lib_projects_images_of_any_layout() -> None:
    model = Linear(2)
    images = 0.5 + 0.02 * torch.randn(6, 3, 4, 4, generator=generator(5))
    labels = torch.zeros(6, dtype=torch.long)
    attack = prepare("fmn", engine="adv-lib", norm="linf", steps=20)
    last = images.contiguous(memory_format=torch.channels_last)
    one, other = (attack(model, x, labels, generator=generator()) for x in (images, last))
    torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    raw = run_adv_lib("fmn", model, last, labels, {"norm": "linf", "steps": 20})
    assert (raw - images).abs().max() > 2 * (one - images).abs().max(), "why it gets the ordinary"


@needs_adv_lib
def test_what_adv_lib_may_not_be_asked_for() -> None:
    with pytest.raises(RequestError, match=r"fmn in l0 may break off, .* use `engine='rlskit'`"):
        prepare("fmn", engine="adv-lib", norm="l0")
    with pytest.raises(RequestError, match="`target` is no option of fmn"):
        prepare("fmn", engine="adv-lib", target=1)
    model, labels = Linear(2), torch.zeros(1, dtype=torch.long)
    image = torch.full((1, 3, 4, 4), 0.5)
    with pytest.raises(RuntimeError, match="out of bounds"):  # one value is enough
        run_adv_lib("fmn", model, image, labels, {"norm": "l0", "steps": 20})
    ours = prepare("fmn", norm="l0", steps=20)(model, image, labels, generator=generator())
    assert perturbation_norms(image, ours)["l0"].item() == 1
