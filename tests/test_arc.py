"""ARC: the optimum on two linear members, what stops PGD but not ARC, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit.attacks import prepare
from rlskit.attacks.arc import OVERSHOOT, _best_move, arc
from rlskit.attacks.deepfool import BEYOND, deepfool
from rlskit.attacks.pgd import pgd
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation import attack
from rlskit.pixels import perturbation_norms
from rlskit.threat.meter import Meter
from rlskit.threat.view import DrawsView, attackers_view
from rlskit.training import TrainOptions, train
from small_models import generator

EPS = 0.05
DUAL = {"linf": 1, "l2": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these, a second thread on a busy machine costs a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class HalfPlane(nn.Module):
    """Two classes and a plane: class 0 leads by `bias - w (x - 0.5)`.

    The plane is `distance` from the grey image, in `norm`.
    """

    def __init__(self, weight: Tensor, distance: float, norm: str) -> None:
        super().__init__()
        self.weight = weight.double()
        self.size = torch.linalg.vector_norm(self.weight, DUAL[norm])
        self.bias = distance * self.size

    def forward(self, images: Tensor) -> Tensor:
        lead = self.bias - (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def centre(n: int, size: int = 2) -> tuple[Tensor, Tensor]:
    """Grey images and the label 0."""
    images = torch.full((n, 1, 1, size), 0.5, dtype=torch.float64)
    return images, torch.zeros(n, dtype=torch.long)


def right(members: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Which members answer with the label, bool `[M, B]`."""
    with torch.no_grad():
        return torch.stack([member(images).argmax(1) == labels for member in members])


def run(
    members: Sequence[nn.Module], images: Tensor, labels: Tensor, *, norm: str, **options: Any
) -> Tensor:
    """Attack, and check what holds for every result."""
    view = DrawsView(members) if len(members) > 1 else members[0]
    options = {"eps": EPS} | options
    found = arc(view, images, labels, norm=norm, generator=generator(), **options)
    assert found.min() >= 0
    assert found.max() <= 1
    assert perturbation_norms(images, found)[norm].max() <= options["eps"] + 1e-6
    before, after = (right(members, x, labels).sum(0) for x in (images, found))
    assert (after <= before).all()
    return found


# --- Two linear members in two dimensions, where all of the ball can be searched.


def fewest_right(members: Sequence[HalfPlane], images: Tensor, norm: str, margin: float) -> Tensor:
    """Fewest members right anywhere in the ball; one errs that is passed by `margin`, `[B]`.

    Planes that do not hold the image are passed farthest out, so the sphere is searched.
    """
    angle = torch.linspace(0, 2 * math.pi, 3601, dtype=torch.float64)
    moves = EPS * torch.stack([angle.cos(), angle.sin()], 1)
    if norm == "linf":
        moves = moves / moves.abs().amax(1, keepdim=True) * EPS
    standing = []
    for member in members:
        lead = member(images)[:, :1] - moves @ member.weight  # image by move
        standing.append(lead / member.size > -margin)
    return torch.stack(standing).sum(0).amin(1)


@pytest.mark.parametrize("norm", DUAL)
def test_the_optimum_on_random_pairs_of_planes(norm: str) -> None:
    """As a search of the ball, but for what its overshoot past a plane gives up."""
    rng, seen = generator(1), torch.zeros(3, dtype=torch.long)
    for _ in range(40):
        weights = torch.randn(2, 2, generator=rng, dtype=torch.float64)
        members = [HalfPlane(weight, 0.0, norm) for weight in weights]
        sizes = torch.stack([member.size for member in members])
        distances = 1.2 * EPS * torch.rand(60, 2, generator=rng, dtype=torch.float64)
        places = torch.linalg.solve(weights, -(distances * sizes).T).T
        places = places[places.abs().amax(1) < 0.5 - EPS]  # where [0, 1] is no bound
        images, labels = centre(len(places))
        images += places[:, None, None]
        left = right(members, run(members, images, labels, norm=norm, steps=5), labels).sum(0)
        assert (left >= fewest_right(members, images, norm, -1e-9)).all()
        margin = OVERSHOOT * EPS + 1e-4 * EPS
        assert (left <= fewest_right(members, images, norm, margin)).all()
        seen += left.bincount(minlength=3)
    assert seen.min() > 30  # of each kind there are many


def test_a_plane_beyond_the_ball_is_approached_together_with_the_one_before() -> None:
    """And one within it is reached exactly, at the least cost to the one before."""
    pull, ascent = torch.eye(2).reshape(2, 1, 1, 1, 2).double()
    for goal, expected in ((2.0, [0.5**0.5, 0.5**0.5]), (0.6, [0.8, 0.6]), (-0.5, [1.0, 0.0])):
        move, _ = _best_move(pull, ascent, torch.tensor([goal]).double(), 1.0, "l2")
        torch.testing.assert_close(
            move.flatten(), torch.tensor(expected).double(), atol=1e-4, rtol=0
        )
    move, _ = _best_move(pull + 0.1 * ascent, ascent, torch.tensor([0.6]).double(), 1.0, "linf")
    assert move.flatten().tolist() == [1.0, 1.0]


EITHER = ([0], [1])
"""Both members are within reach, but not together."""


@pytest.mark.parametrize(
    ("norm", "normals", "distances", "standing"),
    [
        # Orthogonal: in l2 both are passed if the squares sum to less than 1, in linf always.
        ("l2", [(1, 0), (0, 1)], (0.6, 0.7), []),
        ("l2", [(1, 0), (0, 1)], (0.7, 0.6), []),
        ("l2", [(1, 0), (0, 1)], (0.8, 0.7), EITHER),
        ("linf", [(1, 0), (0, 1)], (0.9, 0.9), []),
        # Opposed: never both.
        ("l2", [(1, 0), (-1, 0)], (0.2, 0.2), EITHER),
        ("linf", [(1, 0), (-1, 0)], (0.2, 0.2), EITHER),
        ("linf", [(1, 1), (-1, -1)], (0.1, 0.1), EITHER),
        # Only one is within reach, whichever comes first.
        ("l2", [(1, 0), (-1, 0)], (0.5, 1.2), [1]),
        ("l2", [(1, 0), (-1, 0)], (1.2, 0.5), [0]),
        ("linf", [(3, 1), (-1, 2)], (1.1, 0.9), [0]),
        ("linf", [(3, 1), (-1, 2)], (0.9, 1.1), [1]),
        # The steepest directions (1, 1) and (-1, -1) cancel, and yet (1, -1) passes both.
        ("linf", [(1, 0.1), (-0.1, -1)], (0.75, 0.75), []),
        ("l2", [(1, 0.1), (-0.1, -1)], (0.6, 0.6), []),
    ],
)
def test_known_planes(norm: str, normals: Any, distances: Any, standing: Any) -> None:
    members = [
        HalfPlane(torch.tensor(normal), EPS * distance, norm)
        for normal, distance in zip(normals, distances, strict=True)
    ]
    images, labels = centre(1)
    for top_classes in (2, 4):
        found = run(members, images, labels, norm=norm, top_classes=top_classes)
        left = right(members, found, labels).squeeze(1).nonzero().flatten().tolist()
        assert left in (EITHER if standing is EITHER else (standing,))


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("view", ["mean-prob", "mean-logit"])
def test_pgd_sees_no_slope_where_gradients_cancel(norm: str, view: str) -> None:
    """Members that face each other: the mean has no gradient, one of them falls all the same."""
    weight = torch.randn(16, generator=generator(2))
    members = [HalfPlane(sign * weight, 0.9 * EPS, norm) for sign in (1, -1)]
    images, labels = centre(8, 16)
    stuck = pgd(
        DrawsView(members, view), images, labels, norm=norm, eps=EPS, steps=40, step_size=EPS / 4,
        random_start=False, generator=generator(),
    )  # fmt: skip
    assert right(members, stuck, labels).sum(0).tolist() == [2] * 8
    if view == "mean-logit":  # anywhere, so that random starts do not help
        stuck = pgd(DrawsView(members, view), images, labels, norm=norm, eps=EPS, steps=40,
                    step_size=EPS / 4, generator=generator())  # fmt: skip
        assert right(members, stuck, labels).sum(0).tolist() == [2] * 8
    found = run(members, images, labels, norm=norm)
    assert right(members, found, labels).sum(0).tolist() == [1] * 8


# --- One member.


class Linear(nn.Module):
    """Logits W (x - 0.5) + b of ten classes, class 0 leading."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = torch.randn(10, 12, generator=generator(seed), dtype=torch.float64)
        self.bias = -0.1 * torch.rand(10, generator=generator(seed + 1), dtype=torch.float64)
        self.bias[0] = 0.5

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T + self.bias


@pytest.mark.parametrize("norm", DUAL)
def test_one_linear_member_is_passed_where_deepfool_passes_it(norm: str) -> None:
    member = Linear()
    images, labels = centre(1, 12)
    normals = member.weight[1:] - member.weight[0]
    distances = (0.5 - member.bias[1:]) / torch.linalg.vector_norm(normals, DUAL[norm], 1)
    nearest = int(distances.argmin())
    least = distances[nearest].item()
    for scale, stands in ((0.99, True), (1.01, False)):
        found = run([member], images, labels, norm=norm, eps=scale * least, top_classes=10)
        assert right([member], found, labels).item() == stands
        normal = normals[nearest]
        unit = normal.sign() if norm == "linf" else normal / normal.norm()
        torch.testing.assert_close((found - images).flatten(), scale * least * unit)
    closest = deepfool(member, images, labels, norm=norm, overshoot=0.01, generator=generator())
    expected = images + (closest - images) / BEYOND
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.equal(found, images)


# --- Nets: what no result may do.


class Net(nn.Module):
    """A small smooth net of four classes on 12 pixels, in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = generator(seed)
        self.inner = nn.Parameter(torch.randn(12, 30, generator=rng, dtype=torch.float64))
        self.outer = nn.Parameter(torch.randn(30, 4, generator=rng, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.dropout((images.flatten(1) @ self.inner).sin()) @ self.outer
        return logits


def nets_and_images(n: int = 40) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Three nets, images, and labels that few of the nets answer with."""
    members: list[nn.Module] = [Net(seed).eval() for seed in range(3)]
    images = torch.rand(n, 3, 2, 2, generator=generator(9), dtype=torch.float64)
    return members, images, torch.randint(4, (n,), generator=generator(8))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.06)])
def test_who_errs_already_is_left_alone(norm: str, eps: float) -> None:
    members, images, labels = nets_and_images()
    before = right(members, images, labels).sum(0)
    assert before.bincount(minlength=3).min() > 0
    found = run(members, images, labels, norm=norm, eps=eps, steps=5)
    after = right(members, found, labels).sum(0)
    assert after.sum() < 0.9 * before.sum()
    assert torch.equal(found[before == 0], images[before == 0])


@pytest.mark.parametrize("norm", DUAL)
def test_batch_mates_do_not_matter(norm: str) -> None:
    members, images, labels = nets_and_images()
    whole = run(members, images, labels, norm=norm, steps=5)
    order = torch.randperm(len(images), generator=generator(3))
    permuted = run(members, images[order], labels[order], norm=norm, steps=5)
    torch.testing.assert_close(permuted, whole[order], atol=1e-9, rtol=0)
    for i in (0, 7, 39):
        one = slice(i, i + 1)
        alone = run(members, images[one], labels[one], norm=norm, steps=5)
        torch.testing.assert_close(alone, whole[one], atol=1e-9, rtol=0)


def test_no_budget_changes_nothing() -> None:
    members, images, labels = nets_and_images()
    for norm in DUAL:
        assert torch.equal(run(members, images, labels, norm=norm, eps=0.0), images)


def test_one_member_with_nan_logits_is_enough() -> None:
    members, images, labels = nets_and_images()
    with torch.no_grad():
        members[2].get_parameter("outer")[0, 3] = math.nan
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        run(members, images, labels, norm="linf")


def test_the_members_are_given_back_as_they_were() -> None:
    members, images, labels = nets_and_images()
    expected = run(members, images, labels, norm="linf", steps=3)
    members[1].train()
    view = DrawsView(members).train()
    found = arc(view, images, labels, eps=EPS, steps=3, generator=generator())
    assert torch.equal(found, expected)
    assert all(module.training for module in view.modules())
    assert all(parameter.requires_grad for parameter in view.parameters())
    assert not any(module._forward_hooks for module in view.modules())


# --- What it costs.


@pytest.mark.parametrize(("top_classes", "boundaries"), [(2, 1), (4, 3), (99, 9)])
def test_passes_of_members_that_all_stand(top_classes: int, boundaries: int) -> None:
    members, steps, n = 3, 5, 4
    meter = Meter(DrawsView([Linear(seed) for seed in range(members)]), members)
    images, labels = centre(n, 12)
    arc(
        meter, images, labels, eps=1e-6, steps=steps, top_classes=top_classes, generator=generator()
    )
    assert meter.forwards == n * (members + steps * members * (members + 1))
    assert meter.backwards == n * steps * members * boundaries


def test_a_member_that_errs_is_only_asked() -> None:
    erring = Linear()
    erring.bias[3] = 9.0
    meter = Meter(DrawsView([erring, Linear(1)]), 2)
    images, labels = centre(4, 12)
    arc(meter, images, labels, eps=1e-6, steps=5, generator=generator())
    assert meter.forwards == 4 * (2 + 5 * (1 + 2))
    assert meter.backwards == 4 * 5 * 3


def test_passes_end_when_all_members_err() -> None:
    """Orthogonal planes: the first step fools both, one boundary and one trial each."""
    meter = Meter(DrawsView([HalfPlane(w, 0.5 * EPS, "linf") for w in torch.eye(2)]), 2)
    images, labels = centre(1)
    found = arc(meter, images, labels, eps=EPS, generator=generator())
    assert not right(list(meter.members), found, labels).any()
    assert meter.backwards == 2
    assert meter.forwards == 2 + 2 * (1 + 2) + 2  # the last two are this test's


def test_one_draw_is_its_own_member() -> None:
    meter = Meter(Linear(), 1)
    assert meter.members == []
    arc(meter, *centre(4, 12), eps=1e-6, steps=5, generator=generator())
    assert (meter.forwards, meter.backwards) == (4 * (1 + 5 * 2), 4 * 5 * 3)


# --- Through the evaluation.


def test_an_evaluation_attacks_the_views_draws_one_by_one() -> None:
    model, data = small_models.model(2, trained=False), small_models.digits(20)
    options: Any = {"method": "arc", "eps": 0.1, "steps": 3, "n_samples": 2}
    result = attack(model, data, n_attacked=3, **options)
    assert result.protocol == "multi"
    view = attackers_view(model, "multi", 3, seed=0, repeat=0)
    meter = Meter(view, 3)
    images = data.images(range(20)).contiguous(memory_format=torch.channels_last)
    prepare("arc", eps=0.1, steps=3)(meter, images, data.labels, generator=generator())
    assert meter.backwards > 0
    assert result.timing.backwards == meter.backwards
    assert result.timing.forwards == meter.forwards + 2 * 20 * 2
    assert attack(model, data, n_attacked=1, **options).protocol == "transfer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "eot", "n_attacked": 4}, "arc needs fixed ones; use `protocol='multi'`"),
        ({"compiled": True}, "`compiled` cannot serve arc"),
        ({"engine": "torchattacks"}, "torchattacks has no arc"),
        ({"top_classes": 1}, "`top_classes` must be at least 2"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        attack(small_models.model(2), small_models.digits(4), method="arc", **options)


@pytest.mark.slow
def test_hardened_members_fall_at_least_as_far_as_to_pgd_of_the_same_cost() -> None:
    """The paper's direction, on an ensemble of two members that are trained adversarially."""
    model = small_models.model(2, "ensemble", layers=1)
    training = TrainOptions(
        epochs=10, batch_size=50, lr=0.05, schedule="cosine", holdout=0.0, adversarial="pgd",
        adversarial_eps=0.15, adversarial_steps=3, adversarial_step_size=0.06,
    )  # fmt: skip
    train(model, small_models.digits(400, "train"), options=training)
    members: list[nn.Module] = [model.sampled(torch.tensor([bank])) for bank in range(2)]
    test, n = small_models.digits(100), 100
    images, labels = test.images(range(n)), test.labels

    def gibbs(found: Tensor) -> float:
        return right(members, found, labels).double().mean().item()

    assert gibbs(images) > 0.85
    for norm, eps in (("linf", 0.15), ("linf", 0.2), ("l2", 0.8)):
        meter = Meter(DrawsView(members), 2)
        found = gibbs(arc(meter, images, labels, norm=norm, eps=eps, generator=generator()))
        steps = math.ceil((meter.forwards + meter.backwards) / (2 * n))  # of one draw, both ways
        one_by_one = attackers_view(model, "eot", 1, seed=0, repeat=0)
        for view, calls in ((DrawsView(members), math.ceil(steps / 2)), (one_by_one, steps)):
            peer = pgd(
                view, images, labels, norm=norm, eps=eps, steps=calls, step_size=2.5 * eps / calls,
                generator=generator(),
            )  # fmt: skip
            assert found <= gibbs(peer), (norm, eps, calls)
        assert found < gibbs(images) - 0.3
