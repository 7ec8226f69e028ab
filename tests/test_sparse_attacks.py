"""JSMA, Pixle and OnePixel: what they choose, and how few pixels they change."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlskit.attacks.jsma import _most_salient_pair, jsma
from rlskit.attacks.one_by_one import attack_one_by_one
from rlskit.attacks.onepixel import onepixel
from rlskit.attacks.pixle import pixle
from rlskit.attacks.upstream import run_torchattacks
from rlskit.errors import RequestError, UntrustedError
from rlskit.pixels import perturbation_norms
from rlskit.seeds import Purpose
from small_models import Curved, generator

Sparse = Callable[..., Tensor]
BLACK_BOX: list[tuple[Sparse, dict[str, Any]]] = [(onepixel, {"pixels": 2}), (pixle, {})]
EVERY = [(jsma, {}), *BLACK_BOX]


class Linear(nn.Module):
    """Images to logits: a plain matrix, under which every grey image has logits of 0."""

    def __init__(self, classes: int, features: int, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(classes, features, generator=generator(seed))
        self.weight = weight - weight.mean(1, keepdim=True)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def net_and_images(n: int = 16) -> tuple[Curved, Tensor, Tensor]:
    """A network, images in [0.02, 0.98], and labels that are its own answers."""
    model = Curved(roughness=0.2).eval()
    images = 0.02 + 0.96 * torch.rand(n, 1, 8, 8, generator=generator(1))
    return model, images, model(images).argmax(1)


def nearly_grey(n: int, *shape: int) -> Tensor:
    return 0.45 + 0.1 * torch.rand(n, *shape, generator=generator(2))


def changed(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Number of changed pixels of each image, in however many channels."""
    return (clean != adversarial).any(1).flatten(1).sum(1)


# --- JSMA.


@pytest.mark.parametrize("theta", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_pair_is_the_best_of_all_pairs(theta: float, seed: int) -> None:
    images = torch.rand(6, 1, 4, 5, generator=generator(seed))
    images[:, 0, 0], images[:, 0, 1] = 0, 1  # spent in one direction
    model, targets = Linear(3, 20, seed), torch.arange(6) % 3
    x = images.clone().requires_grad_()
    pair, helps = _most_salient_pair(model(x), x, targets, theta)
    for image, target, found in zip(images, targets, pair, strict=True):
        own = np.sign(theta) * model.weight[target].double()
        others = np.sign(theta) * model.weight.sum(0).double() - own
        free = (image.flatten() < 0.99) if theta > 0 else (image.flatten() > 0.01)
        scores = {
            (p, q): (own[p] + own[q]) * -(others[p] + others[q])
            for p in range(20)
            for q in range(p)
            if free[p] and free[q] and own[p] + own[q] > 0 and others[p] + others[q] < 0
        }
        assert {*found.tolist()} == {*max(scores, key=lambda pq: scores[pq])}
    assert helps.all()


def test_no_pair_helps_where_every_slope_is_wrong() -> None:
    model = Linear(2, 4)
    model.weight = torch.tensor([[2.0, 2, 2, 2], [1, 1, 1, 1]])
    images = torch.full((1, 1, 2, 2), 0.5)
    adversarial = jsma(model, images, torch.tensor([0]), gamma=1, generator=generator())
    assert torch.equal(adversarial, images), "raising any value raises both logits"
    darker = jsma(model, images, torch.tensor([0]), theta=-1, gamma=1, generator=generator())
    assert torch.equal(darker, images)


def test_jsma_is_bit_equal_to_torchattacks() -> None:
    """Where a theta of 1 reaches its target; its failures torchattacks returns, and we do not."""
    model, images, labels = net_and_images()
    theirs = run_torchattacks(
        "JSMA", model, images, labels, generator=generator(), gamma=0.125
    )  # 8 of 64 values: four pairs by either rule of rounding
    targets = (labels + 1) % 10
    ours = jsma(model, images, targets, gamma=0.125, targeted=True, generator=generator())
    reached = model(theirs).argmax(1) == targets
    assert 2 < reached.sum() < len(images)
    assert torch.equal(ours[reached], theirs[reached])
    assert torch.equal(ours[~reached], images[~reached])


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.25])
def test_jsma_changes_a_fraction_of_the_values_by_theta(theta: float) -> None:
    model, images, labels = net_and_images()
    adversarial = jsma(model, images, labels, theta=theta, gamma=0.2, generator=generator())
    fooled = model(adversarial).argmax(1) != labels
    l0 = perturbation_norms(images, adversarial)["l0"]
    assert fooled.sum() >= 3
    assert l0[fooled].min() >= 1
    assert l0.max() <= 12, "of 64 values"
    assert torch.equal(adversarial[~fooled], images[~fooled])
    moved = adversarial != images
    if abs(theta) == 1:
        assert (adversarial[moved] == (theta + 1) / 2).all()
    else:
        steps = (adversarial - images)[moved & (adversarial < 1)] / theta
        torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0)


def test_jsma_works_for_any_number_of_classes() -> None:
    for classes in (2, 3, 17):
        model, images = Linear(classes, 72), nearly_grey(8, 3, 4, 6)
        labels = model(images).argmax(1)
        adversarial = jsma(model, images, labels, gamma=0.5, generator=generator())
        assert (model(adversarial).argmax(1) != labels).float().mean() > 0.5


def test_targeted_jsma_leaves_what_has_reached_its_target() -> None:
    model, images, labels = net_and_images()
    assert torch.equal(jsma(model, images, labels, targeted=True, generator=generator()), images)


# --- Pixle and OnePixel.


@pytest.mark.parametrize("pixels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9), (3, 9, 6)])
def test_onepixel_changes_as_few_pixels_as_it_says(
    pixels: int, shape: tuple[int, int, int]
) -> None:
    images = nearly_grey(12, *shape)
    model = Linear(4, images[0].numel())
    labels = model(images).argmax(1)
    adversarial = onepixel(
        model, images, labels, pixels=pixels, steps=20, population=20, generator=generator()
    )
    fooled = model(adversarial).argmax(1) != labels
    assert fooled.sum() >= pixels
    assert changed(images, adversarial).max() == pixels
    assert torch.equal(adversarial[~fooled], images[~fooled])
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_pixle_only_moves_pixels() -> None:
    images = nearly_grey(8, 3, 8, 8)
    model = Linear(4, 192)
    labels = model(images).argmax(1)
    adversarial = pixle(
        model, images, labels, restarts=2, steps=20, largest_patch=3, generator=generator()
    )
    fooled = model(adversarial).argmax(1) != labels
    assert fooled.sum() >= 2
    assert torch.equal(adversarial[~fooled], images[~fooled])
    assert changed(images, adversarial)[fooled].min() >= 1
    assert changed(images, adversarial).max() <= 2 * 3 * 3
    for before, after in zip(images.flatten(2), adversarial.flatten(2), strict=True):
        colours = {tuple(pixel) for pixel in before.T.tolist()}
        assert {tuple(pixel) for pixel in after.T.tolist()} <= colours


def test_pixle_refuses_what_torchattacks_would_crash_on() -> None:
    images, labels = torch.rand(2, 3, 6, 8), torch.tensor([0, 0])
    with pytest.raises(RequestError, match="pixle needs square images, not 6 x 8"):
        pixle(nn.Flatten(), images, labels, generator=generator())
    with pytest.raises(RequestError, match="`largest_patch` 2 must be at least `smallest_patch` 3"):
        pixle(
            nn.Flatten(), images[..., :6], labels, smallest_patch=3, largest_patch=2,
            generator=generator(),
        )  # fmt: skip


class Gambler(nn.Module):
    """Draws from every global state, and breaks at its fifth call."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:  # the first call is ours: it sees the clean images
            np.random.rand(), random.random(), torch.rand(())  # noqa: NPY002
        return images.flatten(1)[:, :2] / (self.calls < 5)


@pytest.mark.parametrize("attack", [Purpose.ONEPIXEL, Purpose.PIXLE])
def test_global_random_states_are_given_back_also_after_an_error(attack: Purpose) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    images = nearly_grey(4, 1, 4, 4)
    labels, before = images.flatten(1)[:, :2].argmax(1), states()
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        attack_one_by_one(attack, Gambler(), images, labels, generator=generator())
    assert states() == before


# --- What holds for all of them.


@pytest.mark.parametrize(("attack", "options"), EVERY)
def test_a_result_depends_on_the_image_and_the_seed_alone(
    attack: Sparse, options: dict[str, Any]
) -> None:
    model, images, labels = net_and_images(10)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    whole = attack(model, images, labels, generator=generator(), **options)
    assert (whole != images).flatten(1).any(1).sum() >= 3
    assert np.random.rand() == np.random.RandomState(3).rand(), "NumPy's state is left alone"  # noqa: NPY002
    order = torch.randperm(len(images), generator=generator(4))
    model.train()
    permuted = attack(model, images[order], labels[order], generator=generator(), **options)
    assert all(module.training for module in model.modules())
    split = [
        attack(model, images[part], labels[part], generator=generator(), **options)
        for part in (slice(1), slice(1, 4), slice(4, 10))
    ]
    torch.testing.assert_close(permuted, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(split), whole, atol=1e-6, rtol=0)
    other = attack(model, images, labels, generator=generator(1), **options)
    assert torch.equal(other, whole) == (attack is jsma)


@pytest.mark.parametrize(("attack", "options"), EVERY)
def test_mistakes_come_back_bitwise(attack: Sparse, options: dict[str, Any]) -> None:
    model, images, labels = net_and_images()
    wrong = (labels + 1) % 10
    assert torch.equal(attack(model, images, wrong, generator=generator(), **options), images)


@pytest.mark.parametrize(("attack", "options"), EVERY)
def test_non_finite_logits_are_no_result(attack: Sparse, options: dict[str, Any]) -> None:
    _, images, labels = net_and_images(2)
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        attack(Curved(torch.inf), images, labels, generator=generator(), **options)
