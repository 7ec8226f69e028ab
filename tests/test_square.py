"""The square attack: equality with torchattacks query by query, known optima, black box."""

import contextlib
import io
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from rlskit.attacks import square as square_module
from rlskit.attacks.losses import LOSSES, margin
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

THEIRS = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.01, "l2": 0.05}


def upstream(model: nn.Module, **options: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        attack = torchattacks.Square(model, **options)
    attack.set_device("cpu")
    return attack


# --- Equality with torchattacks 3.5.1.


class TheirNumbers:
    """Feeds torchattacks' Square numbers that are ours too, one batch of one image at a time.

    Ours come in rows of 5 + C: two corners, whether to turn, and the signs.
    """

    def __init__(self, attack: Any, norm: str, channels: int, n: int) -> None:
        self.rows = torch.rand(n, 5 + channels, generator=generator(9))
        self.norm, self.row, self.column = norm, -1, 0
        self.places = 4 if norm == "l2" else 2
        attack.random_int, attack.random_choice, attack.eta = self.place, self.signs, self.bump

    def place(self, low: int, high: int) -> int:
        if self.column == 0:
            self.row += 1
        number = self.rows[self.row, self.column]
        self.column = (self.column + 1) % self.places
        return int(number * (high - low + 1))

    def signs(self, shape: list[int]) -> Tensor:
        if self.row < 0:  # the start, which is compared elsewhere
            return torch.ones(shape)
        return torch.where(self.rows[self.row, 5:] < 0.5, -1.0, 1.0).reshape(shape)

    def bump(self, side: int) -> Tensor:
        bump = square_module._bump(side)
        return bump.T if self.rows[self.row, 4] < 0.5 else bump


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize(("norm", "channels"), [("linf", 3), ("l2", 1)])
def test_every_query_is_that_of_torchattacks(
    norm: str, channels: int, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In l2 with one channel: with more, torchattacks gives each the budget of all.
    eps, steps, shape = 1e-3, 150, (channels, 16, 16)
    model = Waves(5, shape=shape).eval()
    image = torch.rand(1, *shape, generator=generator(1))
    label = answers(model, image)
    towards = torch.randn(image.shape, generator=generator(2))
    towards = towards.sign() if norm == "linf" else towards / towards.square().sum().sqrt()
    start = (image + eps * towards).clamp(0, 1)

    monkeypatch.setattr(square_module, "_stripes", lambda *_: start.clone())
    monkeypatch.setattr(square_module, "_tiles", lambda *_: start.clone())
    theirs = upstream(model, norm=THEIRS[norm], eps=eps, n_queries=steps - 1, loss=loss)
    schedule = theirs.p_selection
    numbers = TheirNumbers(theirs, norm, channels, square_module.CHUNK * 2)
    blocks = iter(numbers.rows.reshape(2, 1, square_module.CHUNK, -1))
    monkeypatch.setattr(square_module, "_numbers", lambda *_: next(blocks))

    # Both count the start as no step of the schedule, but theirs counts queries from 0.
    def from_one(query: int) -> float:
        theirs.n_queries = steps
        share: float = schedule(query + 1)
        return share

    theirs.p_selection = from_one
    asked: list[Tensor] = []
    judge = theirs.margin_and_loss

    def from_the_start(x: Tensor, y: Tensor) -> Any:
        if not asked:
            x.copy_(start)  # its own stripes or tiles are compared elsewhere
        asked.append(x.clone())
        return judge(x, y)

    theirs.margin_and_loss = from_the_start
    theirs.init_hyperparam(image)
    _, expected = theirs.attack_single_run(image, label)
    ours = square(model, image, label, norm=norm, eps=eps, steps=steps, loss=loss,
                  generator=generator())  # fmt: skip
    assert len(asked) == steps
    assert not torch.equal(expected, start)
    assert (answers(model, expected) == label).all()
    torch.testing.assert_close(ours, expected, atol=2e-7, rtol=0)


def test_in_l2_a_window_takes_what_is_left_of_the_budget_and_no_more() -> None:
    # Algorithm 3: what lies outside both windows stays; torchattacks gives every channel the budget
    # of all, and shrinks the rest.
    images = torch.full((1, 3, 9, 9), 0.5)
    delta = 0.01 * torch.randn(images.shape, generator=generator(1))
    eps = 2 * float(delta.square().sum().sqrt())
    numbers = torch.tensor([[0.0, 0.0, 0.99, 0.99, 0.0, 0.1, 0.9, 0.1]])
    after = square_module._move_mass(images, images + delta, numbers, 3, eps) - images
    assert float(after.square().sum().sqrt()) == pytest.approx(eps, rel=1e-5)
    assert (after[..., 6:, 6:] == 0).all()
    outside = torch.ones(9, 9, dtype=torch.bool)
    outside[:3, :3] = outside[6:, 6:] = False
    torch.testing.assert_close(after[..., outside], delta[..., outside], atol=1e-6, rtol=0)
    unused = (eps**2 - delta.square().sum()) / 3
    both = delta[..., :3, :3].square().sum((2, 3)) + delta[..., 6:, 6:].square().sum((2, 3))
    torch.testing.assert_close(after[..., :3, :3].square().sum((2, 3)), both + unused)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13])
def test_the_bump_is_that_of_torchattacks(side: int) -> None:
    theirs = upstream(Constant(), norm="L2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(side)
        turned = bool(torch.rand([1]) > 0.5)
        torch.manual_seed(side)
        expected = theirs.eta(side)
    ours = square_module._bump(side)
    torch.testing.assert_close(ours.T if turned else ours, expected)
    assert float(ours.square().sum()) == pytest.approx(1)


def test_the_side_shrinks_as_in_torchattacks() -> None:
    images = torch.zeros(1, 3, 32, 32)
    theirs = upstream(Constant(), n_queries=700)
    for query in range(700):
        expected = max(round((theirs.p_selection(query) * 32 * 32) ** 0.5), 1)
        assert square_module._side(images, 0.8, query / 700, "linf") == expected
    sides = [square_module._side(images, 0.8, share, "l2") for share in (0.0, 0.003, 0.9)]
    assert sides == [29, 21, 3]
    assert square_module._side(torch.zeros(1, 1, 2, 40), 0.8, 0.0, "linf") == 2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.004), ("l2", 0.04)])
def test_it_fools_as_many_images_as_torchattacks(norm: str, eps: float) -> None:
    # On 16 x 16 pixels: theirs cannot tile images of most sizes in l2.
    shape = (1, 16, 16)
    model = Waves(4, shape=shape).eval()
    images = torch.rand(150, *shape, generator=generator(1))
    labels = answers(model, images)
    with torch.random.fork_rng(devices=[]):
        theirs = upstream(model, norm=THEIRS[norm], eps=eps, n_queries=100)
        expected = (answers(model, theirs(images, labels)) != labels).double().mean().item()
    found = square(model, images, labels, norm=norm, eps=eps, steps=100, generator=generator())
    check_adversarial(images, found, norm, eps)
    share = (answers(model, found) != labels).double().mean().item()
    assert 0.2 < share < 0.8
    assert abs(share - expected) < 0.17  # three standard errors of a difference


# --- Known optima.


def test_linear_optimum_in_linf_is_reached_exactly() -> None:
    model = Plane(2)
    images, labels = model.images(4)
    for scale, fooled in ((0.99, False), (1.01, True)):
        eps = scale * model.distance("linf")
        found = square(model, images, labels, eps=eps, steps=2500, generator=generator())
        check_adversarial(images, found, "linf", eps)
        assert ((answers(model, found) != labels) == fooled).all()
        if not fooled:
            best = images + eps * model.normal().sign().reshape(SHAPE)
            torch.testing.assert_close(found, best, atol=1e-7, rtol=0)


def test_linear_optimum_in_l2_is_approached() -> None:
    # Windows of 3 x 3 on 4 x 4 pixels: a factor of two is what it can do.
    model = Plane(2)
    images, labels = model.images(4)
    for scale, fooled in ((0.99, False), (2.0, True)):
        eps = scale * model.distance("l2")
        found = square(model, images, labels, norm="l2", eps=eps, steps=500, generator=generator())
        check_adversarial(images, found, "l2", eps)
        assert ((answers(model, found) != labels) == fooled).all()
        assert ((size(images, found, "l2") / eps - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (2, 5, 3), (3, 7, 7), (1, 28, 28)])
@pytest.mark.parametrize("norm", THEIRS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_any_size_of_image(shape: tuple[int, ...], norm: str, value: float) -> None:
    model = Waves(3, shape=shape)
    images = torch.full((2, *shape), value)
    labels = answers(model, images)
    found = square(model, images, labels, norm=norm, eps=0.02, steps=60, generator=generator())
    check_adversarial(images, found, norm, 0.02)
    before, after = (margin(model(x), labels) for x in (images, found))
    assert (after < before).all()


def test_every_value_is_in_reach_of_a_square() -> None:
    # torchattacks never touches the last row and column after the start.
    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            corner = images[:, 0, -1, -1]
            return torch.stack([torch.full_like(corner, 0.59), corner], 1)

    images = torch.full((16, 1, 6, 6), 0.5)
    images += torch.linspace(0, 0.001, 16)[:, None, None, None]  # another stream each
    found = square(Corner(), images, torch.zeros(16).long(), eps=0.1, steps=400, p_init=0.1,
                   generator=generator())  # fmt: skip
    assert (found[:, 0, -1, -1] > 0.59).all()


# --- Black box, budgets of queries, survivors.


class Blind(nn.Module):
    """Answers, but has no gradients to give."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        logits: Tensor = self.model(images)
        return logits


def test_it_needs_scores_only_and_counts_its_queries() -> None:
    model = Counting(Blind(Net()))
    images, labels = answered(model, 24)
    model.asked.clear()
    found = square(model, images, labels, eps=0.05, steps=250, restarts=2, generator=generator())
    asked = list(model.asked)
    fooled = answers(model, found) != labels
    assert 0 < fooled.sum() < 24
    assert len(asked) == 1 + 2 * 250
    assert asked[:2] == [24, 24]
    assert asked[-1] == (~fooled).sum() <= asked[251] == asked[250]
    assert sorted(asked[1:251], reverse=True) == asked[1:251], "who is fooled is left alone"


def test_one_query_is_the_start() -> None:
    model = Net()
    images, labels = answered(model)
    found = square(model, images, labels, eps=0.001, steps=1, generator=generator())
    changes = ((found - images) / 0.001).round()
    assert torch.equal(changes.abs(), torch.ones_like(changes))
    assert torch.equal(changes, changes[:, :, :1].expand_as(changes)), "stripes"
    assert len({tuple(change.flatten().tolist()) for change in changes}) == len(images)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_survivors_come_back_where_the_loss_is_highest(loss: str) -> None:
    model = Waves(5)
    images, labels = answered(model, 16)
    highest = torch.full((16,), -float("inf"))
    for restarts in (1, 2, 4):
        found = square(model, images, labels, eps=0.001, steps=40, loss=loss, restarts=restarts,
                       generator=generator())  # fmt: skip
        robust = answers(model, found) == labels
        assert robust.sum() > 8
        value = LOSSES[loss](model(found), labels).detach()
        assert (value >= highest)[robust].all()
        assert (value > LOSSES[loss](model(images), labels))[robust].all()
        assert (value > highest)[robust].any()
        highest = value


def test_a_point_that_fools_is_taken_at_any_loss() -> None:
    class Table(nn.Module):
        """Up: higher cross-entropy, but still class 0. Down: class 1, with more trust in 0."""

        def forward(self, images: Tensor) -> Tensor:
            up = (images.flatten(1) > 0.55).double()
            down = (images.flatten(1) < 0.45).double()
            clean, high, low = torch.tensor(
                [[0.5, 0.3, 0.2], [0.36, 0.35, 0.29], [0.4, 0.41, 0.19]], dtype=torch.float64
            )
            shares: Tensor = (1 - up - down) * clean + up * high + down * low
            return shares.log()

    images = 0.5 + torch.linspace(0, 0.001, 16).reshape(16, 1, 1, 1)  # another stream each
    found = square(Table(), images, torch.zeros(16).long(), eps=0.1, steps=30, loss="ce",
                   generator=generator())  # fmt: skip
    assert (found < 0.45).all()


def test_a_constant_model_cannot_be_fooled() -> None:
    images, labels = torch.rand(3, *SHAPE, generator=generator()), torch.tensor([0, 1, 0])
    found = square(Constant(), images, labels, eps=0.1, steps=20, generator=generator())
    assert torch.equal(found[1], images[1]), "misclassified anyway"
    check_adversarial(images, found, "linf", 0.1)


def test_non_finite_logits_are_not_a_result() -> None:
    model = Net()
    images, labels = answered(model, 4)
    with torch.no_grad():
        model.head.bias[:] = float("nan")
    with pytest.raises(UntrustedError, match="logits"):
        square(model, images, labels, steps=3, generator=generator())


# --- What holds for every attack.


@pytest.mark.parametrize("norm", THEIRS)
def test_a_result_does_not_depend_on_batch_mates(norm: str) -> None:
    model, images = Waves(5).double(), torch.rand(12, *SHAPE, generator=generator(1)).double()
    labels = answers(model, images)  # in double, rounding cannot grow to what is seen below
    labels[2] = (labels[2] + 1) % 5

    def run(rows: Any, seed: int = 7) -> Tensor:
        return square(
            model, images[rows], labels[rows], norm=norm, eps=EPS[norm], steps=130, restarts=2,
            generator=generator(seed),
        )  # fmt: skip

    whole = run(slice(None))
    assert 1 < (answers(model, whole) != labels).sum() < len(images)
    order = torch.randperm(len(images), generator=generator(3))
    torch.testing.assert_close(run(order), whole[order], atol=1e-9, rtol=0)
    split = torch.cat([run(part) for part in (slice(0, 1), slice(1, 6), slice(6, None))])
    torch.testing.assert_close(split, whole, atol=1e-9, rtol=0)
    assert torch.equal(run(slice(None)), whole)
    assert not torch.equal(run(slice(None), seed=8), whole)
    assert torch.equal(whole[2], images[2]), "misclassified anyway"
    check_adversarial(images, whole, norm, EPS[norm])


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = Net()
    images, labels = answered(model)
    before = images.clone()
    in_eval = square(model, images, labels, steps=20, generator=generator())
    model.train()
    model.bn.eval()
    modes, outside = [m.training for m in model.modules()], torch.get_rng_state()
    in_train = square(model, images, labels, steps=20, generator=generator())
    assert torch.equal(in_train, in_eval)
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), outside)
    assert torch.equal(images, before)
