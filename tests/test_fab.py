"""FAB: known optima, its projections, its peer, and what several runs of an image give."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchattacks.attacks.fab import projection_l1, projection_l2, projection_linf

from rlskit.attacks.fab import _onto_plane, fab
from rlskit.attacks.upstream import run_torchattacks
from rlskit.errors import UntrustedError
from rlskit.pixels import perturbation_norms
from small_models import Curved, generator

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


class Linear(nn.Module):
    """Logits W x + b: near 0.5 class 0 leads by 0.1 and more, and every optimum is in [0, 1]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = 0.2 * torch.randn(classes, 48, generator=generator())
        self.bias = -0.01 * torch.arange(classes) - 0.5 * self.weight.sum(1)
        self.bias[0] += 0.1

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def net_and_images(n: int = 16, roughness: float = 0.5) -> tuple[Curved, Tensor, Tensor]:
    """A network, images, and labels that are its own answers."""
    model = Curved(roughness=roughness).eval()
    images = torch.rand(n, 1, 8, 8, generator=generator(1))
    return model, images, model(images).argmax(1)


def run(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return fab(model, images, labels, generator=generator(), **options)


def distances(images: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    return perturbation_norms(images, adversarial)[norm]


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("target_classes", [0, 9])
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_optimum(norm: str, target_classes: int, classes: int) -> None:
    model = Linear(classes)
    images = 0.5 + 0.02 * torch.randn(12, 3, 4, 4, generator=generator(5))
    logits = model(images)
    labels = logits.argmax(1)
    leads = logits.gather(1, labels[:, None]) - logits
    slopes = (model.weight[labels][:, None] - model.weight).norm(p=DUAL[norm], dim=2)
    optimum = (leads / slopes).nan_to_num(math.inf).amin(1)  # 0 / 0 is the label itself
    adversarial = run(model, images, labels, norm=norm, target_classes=target_classes)
    assert (model(adversarial).argmax(1) != labels).all()
    ratio = distances(images, adversarial, norm) / optimum
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.01


@pytest.mark.parametrize(
    ("norm", "lead", "step"),
    [
        ("l2", 1.0, [-3 / 25, -4 / 25]),  # against the slope (3, 4)
        ("linf", -0.5, [0.5 / 7, 0.5 / 7]),
        ("l1", 1.0, [0.0, -1 / 4]),  # the steeper value alone
        ("l2", 3.0, [-0.2, -2.4 / 4]),  # the first value meets 0, the second does the rest
        ("linf", 3.0, [-0.2, -2.4 / 4]),
        ("l1", 3.3, [-0.3 / 3, -0.75]),  # the second value meets 0
        ("l2", 4.0, [-0.2, -0.75]),  # out of reach: the corner
        ("linf", 4.0, [-0.2, -0.75]),
        ("l1", 4.0, [-0.2, -0.75]),
        ("l2", 0.0, [0.0, 0.0]),
    ],
)
def test_projections_by_hand(norm: str, lead: float, step: list[float]) -> None:
    point = torch.tensor([[[[0.2, 0.75]]]])
    slope = torch.tensor([[[[3.0, 4.0]]]]).double()
    found = _onto_plane(point, torch.tensor([lead]).double(), slope, norm)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(step).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("size", [0.0, 0.1, 3, 20])
def test_projections_agree_with_torchattacks(norm: str, size: float) -> None:
    peer = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}[norm]
    points = torch.rand(60, 40, generator=generator(1))
    points[:, :3], points[:, 3:6] = 0, 1
    slopes = torch.randn(60, 40, generator=generator(2))
    slopes[:, 5:8] = 0
    leads = size * torch.randn(60, generator=generator(3))
    expected = peer(points, slopes, (slopes * points).sum(1) - leads)
    found = _onto_plane(points[:, None, None], leads.double(), slopes[:, None, None].double(), norm)
    torch.testing.assert_close(found[:, 0, 0].float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])  # torchattacks crashes for l1
def test_agrees_with_torchattacks(norm: str) -> None:
    model, images, labels = net_and_images()
    theirs = run_torchattacks(
        "FAB", model, images, labels, generator=generator(),
        norm={"linf": "Linf", "l2": "L2"}[norm], eps=1e9, steps=30,
    )  # fmt: skip
    ours = run(model, images, labels, norm=norm, steps=30)
    assert distances(images, theirs, norm).min() > 0
    ratio = distances(images, ours, norm) / distances(images, theirs, norm)
    assert (ratio - 1).abs().max() < 0.01, ratio


def test_more_runs_keep_the_nearest_point() -> None:
    model, images, labels = net_and_images(roughness=4)
    few = {"norm": "l1", "steps": 5}
    one = distances(images, run(model, images, labels, **few), "l1")
    more = distances(images, run(model, images, labels, restarts=4, **few), "l1")
    assert ((one == 0) & (more > 0)).any(), "a random start finds what the clean one does not"
    fooled = one > 0
    assert (more[fooled] <= one[fooled]).all()
    assert (more[fooled] < one[fooled]).any()
    model, images, labels = net_and_images()
    first = distances(images, run(model, images, labels, target_classes=1), "linf")
    nine = distances(images, run(model, images, labels, target_classes=9), "linf")
    assert (nine <= first).all()
    assert (nine < first).any()


def test_near_enough_ends_the_work_on_an_image_and_limits_nothing() -> None:
    model, images, labels = net_and_images()
    options = {"steps": 10, "target_classes": 3}
    first = run(model, images, labels, **(options | {"target_classes": 1}))
    reached = distances(images, first, "linf")
    eps = reached.median().item()
    everything = run(model, images, labels, **options)
    some = run(model, images, labels, enough=eps, **options)
    done = reached <= eps
    assert 0 < done.sum() < len(images)
    assert torch.equal(some[done], first[done])
    torch.testing.assert_close(some[~done], everything[~done], atol=1e-6, rtol=0)
    assert distances(images, some, "linf").max() > eps


@pytest.mark.parametrize("norm", DUAL)
def test_a_result_depends_on_the_image_and_the_seed_alone(norm: str) -> None:
    model, images, labels = net_and_images(roughness=4)
    options: dict[str, Any] = {"norm": norm, "steps": 4, "restarts": 3, "target_classes": 2}
    torch.manual_seed(3)
    outside = torch.get_rng_state()
    whole = run(model, images, labels, **options)
    order = torch.randperm(len(images), generator=generator(4))
    model.train()
    permuted = run(model, images[order], labels[order], **options)
    assert all(module.training for module in model.modules())
    split = [run(model, images[part], labels[part], **options) for part in (slice(1), slice(1, 16))]
    other = fab(model, images, labels, generator=generator(1), **options)
    torch.testing.assert_close(permuted, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(split), whole, atol=1e-6, rtol=0)
    assert not torch.equal(other, whole)
    assert torch.equal(torch.get_rng_state(), outside)


def test_mistakes_and_failures_come_back_bitwise() -> None:
    model, images, labels = net_and_images()
    labels[::2] = (labels[::2] + 1) % 10
    adversarial = run(model, images, labels, steps=10)
    assert torch.equal(adversarial[::2], images[::2])
    assert (adversarial[1::2] != images[1::2]).flatten(1).any(1).all()
    flat = Linear(3)  # its gradients are zero, and class 0 leads
    flat.weight, flat.bias = torch.zeros(3, 64), torch.tensor([1.0, 0, 0])
    for norm in DUAL:
        options = {"norm": norm, "steps": 3, "restarts": 2}
        assert torch.equal(run(flat, images, torch.zeros_like(labels), **options), images)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_can_move(value: float) -> None:
    model, _, _ = net_and_images()
    images = torch.full((1, 1, 8, 8), value)
    labels = model(images).argmax(1)
    for norm in DUAL:
        adversarial = run(model, images, labels, norm=norm, steps=15, target_classes=3)
        assert (model(adversarial).argmax(1) != labels).all(), norm
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_tiny_gradients_are_followed() -> None:
    model, images, labels = net_and_images(8)
    plain = distances(images, run(model, images, labels, norm="l2", steps=20), "l2")
    tiny = run(Curved(2.0**-60).eval(), images, labels, norm="l2", steps=20)
    torch.testing.assert_close(distances(images, tiny, "l2"), plain, rtol=1e-3, atol=0)


def test_non_finite_logits_are_no_result() -> None:
    _, images, labels = net_and_images(2)
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        run(Curved(math.inf).eval(), images, labels)
