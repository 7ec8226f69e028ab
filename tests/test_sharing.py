"""Draws that share what they compute alike answer as each does by itself, bit for bit."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rlskit.defenses.answers import finite_logits
from rlskit.errors import RunError, UntrustedError
from rlskit.models import BankedModel, Card, resolve
from rlskit.models.architecture import Architecture
from rlskit.models.building import build, configure
from rlskit.models.partition import partition
from rlskit.models.published import library_pixels
from rlskit.models.sharing import draw_logits
from rlskit.models.trace import trace
from rlskit.threat.view import attackers_view
from small_models import Recurrent
from test_banks import SMALL, Tied, pixels_of, unlike

PRODUCTS = ("convolution", "addmm", "mm", "bmm")

FAMILIES = [
    ("torchvision:resnet18", "stage"),  # in-place ReLU
    ("test_resnet", "block"),
    ("resnetv2_18", "block"),  # pre-activation
    ("test_vit", "block"),
    ("test_convnext", "layer"),
    ("coat_lite_tiny", "stage"),  # registers modules twice
    ("torchvision:shufflenet_v2_x0_5", "layer"),
]


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the convolutions and matrix products that are really computed, by weight shape."""

    def __init__(self, *names: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names or PRODUCTS
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.names:
            weight = args[2] if name == "addmm" else args[1]
            self.shapes[tuple(weight.shape)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.shapes.total()


def banked(
    factory: Callable[[], nn.Module], side: int = 4, channels: int = 1,
    *, banks: int = 2, granularity: str = "layer",
) -> BankedModel:  # fmt: skip
    pixels = SMALL if (side, channels) == (4, 1) else pixels_of((side, side), channels)
    networks = []
    for seed in range(banks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(unlike(factory(), seed).eval())
    parts = partition(networks[0], trace(networks[0], pixels.shape), granularity)
    return BankedModel(networks, parts, Card(Architecture("own", "test"), pixels, 10)).eval()


def library_model(name: str, granularity: str) -> BankedModel:
    """Of a library's architecture, in the smallest images it accepts that cost little."""
    if "vit" in name or name.startswith("test_"):
        side = library_pixels(resolve(name))["height"]
    else:
        side = 32
    architecture = configure(resolve(name), classes=10, channels=3, image_size=(side, side))
    return banked(lambda: build(architecture), side, 3, granularity=granularity)


def draws_of(model: BankedModel, plans: list[Tensor]) -> list[nn.Module]:
    return [model.sampled(plan) for plan in plans]


def all_plans(model: BankedModel) -> list[Tensor]:
    choices = itertools.product(range(model.num_banks), repeat=model.num_layers)
    return [torch.tensor(plan) for plan in choices]


def images_of(model: BankedModel, count: int = 2) -> Tensor:
    shape = model.card.pixels.shape
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(3))


def random_plans(model: BankedModel, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    plans = torch.randint(model.num_banks, (count, model.num_layers), generator=generator)
    return list(plans)


def one_by_one(draws: list[nn.Module], images: Tensor) -> tuple[Tensor, int]:
    with Products() as products:
        logits = torch.stack([draw(images) for draw in draws])
    return logits, products.total


def together(draws: list[nn.Module], images: Tensor) -> tuple[Tensor, int]:
    with Products() as products:
        logits = draw_logits(draws, images)
    return logits, products.total


@pytest.mark.slow
@pytest.mark.parametrize(("name", "granularity"), FAMILIES)
@torch.no_grad()
def test_families(name: str, granularity: str) -> None:
    model = library_model(name, granularity)
    plans = random_plans(model, 4)
    half = model.num_layers // 2
    plans += [torch.cat([plans[0][:half], 1 - plans[0][half:]]), plans[1].clone()]
    images = images_of(model)
    draws = draws_of(model, plans)
    expected, cost = one_by_one(draws_of(model, plans), images)
    logits, shared = together(draws, images)
    assert torch.equal(logits, expected)
    assert shared < cost * 0.85  # of 6, one is another's twin, and one is half of another
    assert torch.equal(one_by_one(draws, images)[0], expected)  # the draws are as before


class Stages(nn.Module):
    """Three convolutions that tell themselves apart by their channels, and functions between."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.second = nn.Conv2d(2, 3, 1)
        self.third = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 10)
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for stage in (self.first, self.second, self.third):
            features = stage(features)
            if self.in_place:
                features += 0.25
                F.relu_(features[:, :1])  # through a view
                features = F.leaky_relu(features, 0.1, inplace=True)
            else:
                features = F.leaky_relu(features + 0.25, 0.1)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


FIRST, SECOND, THIRD, HEAD = (2, 1, 1, 1), (3, 2, 1, 1), (4, 3, 1, 1), (4, 10)


@pytest.mark.parametrize("order", [range(16), [5, 9, 5, 0, 12, 3, 15, 10, 6, 6, 1]])
@torch.no_grad()
def test_each_node_of_the_tree_is_computed_once(order: list[int]) -> None:
    model = banked(Stages)
    plans = [torch.tensor([number >> 3 - layer & 1 for layer in range(4)]) for number in order]
    draws = draws_of(model, plans)
    images = images_of(model)
    with Products() as products:
        logits = draw_logits(draws, images)
    assert torch.equal(logits, one_by_one(draws, images)[0])
    depths = [len({tuple(plan[: n + 1].tolist()) for plan in plans}) for n in range(4)]
    assert [products.shapes[shape] for shape in (FIRST, SECOND, THIRD, HEAD)] == depths


@torch.no_grad()
def test_normalisation_is_shared() -> None:
    model = banked(Stages)
    draws = draws_of(model, [torch.tensor([m, m, m, 0]) for m in (0, 1)])
    with Products("div") as products:
        draw_logits(draws, images_of(model))
    assert products.total == 1


class Odd(Stages):
    """Does something between the first and the second convolution, and something at the end."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(()), persistent=False)
        self.memory: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        features = self.between(self.first(images))
        features = self.second(features).relu()
        features = self.third(features)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return self.after(logits)

    def between(self, features: Tensor) -> Tensor:
        return features

    def after(self, logits: Tensor) -> Tensor:
        return logits


class LookingAtValues(Odd):
    def between(self, features: Tensor) -> Tensor:
        if features.mean() > 0 and features.max().item() > 0.1:
            return features - features.amin(dim=(2, 3), keepdim=True)
        return features.relu()


class Concatenating(Odd):
    """Like a DenseNet, keeps what it has seen; the list goes into the next block."""

    def forward(self, images: Tensor) -> Tensor:
        seen = [self.first(images)]
        seen.append(self.second(torch.cat(seen, 1)).relu_())
        seen.append(self.third(torch.cat(seen[1:], 1)).relu_())
        logits: Tensor = self.head(seen[-1].mean((2, 3)) + torch.cat(seen, 1).mean())
        return logits


class ThroughNumpy(Odd):
    def between(self, features: Tensor) -> Tensor:
        return torch.from_numpy(features.numpy() * 2)


SCRIPT = torch._C.CompilationUnit("def double(x):\n  return x * 2\n").double


class Scripted(Odd):
    """TorchScript is not seen by those who look at torch functions."""

    def between(self, features: Tensor) -> Tensor:
        doubled: Tensor = SCRIPT(features)
        features.zero_()
        return doubled


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 3


class OwnFunction(Odd):
    def between(self, features: Tensor) -> Tensor:
        doubled: Tensor = Doubled.apply(features)  # type: ignore[no-untyped-call]
        return doubled.relu_()


class WrittenLater(Odd):
    """What is still needed at the second convolution is written to after it."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        other = self.second(features)
        features += 1
        features.mul_(2)
        logits: Tensor = self.head(self.third(other + features.sum(1, keepdim=True)).mean((2, 3)))
        return logits


class WrittenUnseen(Odd):
    """Written to by a call that returns nothing, and through a view."""

    def between(self, features: Tensor) -> Tensor:
        features[:, 0] = features[:, 1] * 2
        features.view(-1)[:3].zero_()
        return features


class WrittenUncounted(Odd):
    """Written to by way of `.data`, which no version of the tensor tells."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        deeper = self.second(features.sin())
        features.data.mul_(0.5)
        logits: Tensor = self.head(self.third(deeper + features.sum(1, keepdim=True)).mean((2, 3)))
        return logits


class Binary(Odd):
    """Its weights are other data in each pass, as XNOR-Net's are."""

    def forward(self, images: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            layer.weight.data = layer.weight.data.sign()
        return super().forward(images)


class Counting(Odd):
    def between(self, features: Tensor) -> Tensor:
        self.scratch += 1
        return features + self.scratch


class CountingThroughAView(Odd):
    def between(self, features: Tensor) -> Tensor:
        self.scratch.view(1).add_(1)
        return features + self.scratch


class Remembering(Odd):
    """Adds what it answered last, and keeps an activation for whoever asks."""

    def between(self, features: Tensor) -> Tensor:
        self.memory["features"] = features
        return features + self.memory.get("logits", torch.zeros(1)).mean()

    def after(self, logits: Tensor) -> Tensor:
        self.memory["logits"] = logits
        return logits


class Caching(Odd):
    """Computes something of its weights once, but only one draw in two has to."""

    def between(self, features: Tensor) -> Tensor:
        if "bias" not in self.memory:
            self.memory["bias"] = self.first.bias.square().view(-1, 1, 1)  # type: ignore[union-attr]
        return features + self.memory["bias"]


class ChangingModes(Odd):
    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            features = self.second(self.first(images))
            if torch.is_grad_enabled():
                features = features * 3
        parts = self.third(features).chunk(2, dim=1)
        logits: Tensor = self.head(torch.cat(parts[::-1], 1).mean(dim=(2, 3)))
        return logits


class Noisy(Odd):
    def between(self, features: Tensor) -> Tensor:
        return features + torch.randn_like(features)


class NoisyAtTheEnd(Odd):
    def after(self, logits: Tensor) -> Tensor:
        return logits + torch.randn(10)


class Catching(Odd):
    """Goes on after an error, of ours too."""

    def between(self, features: Tensor) -> Tensor:
        try:
            return features + self.memory["logits"].sum()
        except Exception:
            self.memory["logits"] = torch.ones(1)
            return features


ODD = [
    Concatenating, LookingAtValues, ThroughNumpy, Scripted, OwnFunction, WrittenLater,
    WrittenUnseen, WrittenUncounted, Binary, Counting, CountingThroughAView, Remembering, Caching,
    ChangingModes, Noisy, NoisyAtTheEnd, Catching,
    Tied, Recurrent, Stages, lambda: Stages(in_place=True),
]  # fmt: skip


@pytest.mark.parametrize("factory", ODD)
@torch.no_grad()
def test_odd_networks(factory: Callable[[], nn.Module]) -> None:
    model = banked(factory)
    images = images_of(model)
    plain, draws = (draws_of(model, all_plans(model)) for _ in range(2))
    for seed in range(3):  # what one time leaves behind is there the next
        torch.manual_seed(seed)
        expected = torch.stack([draw(images + seed / 10) for draw in plain])
        torch.manual_seed(seed)
        assert torch.equal(draw_logits(draws, images + seed / 10), expected)


@torch.no_grad()
def test_what_is_written_to_after_the_draws_part_is_not_used_again() -> None:
    model = banked(WrittenLater)
    plans = [torch.tensor(plan) for plan in ([0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0])]
    images = images_of(model)
    logits, cost = together(draws_of(model, plans), images)
    assert torch.equal(logits, one_by_one(draws_of(model, plans), images)[0])
    assert cost == 12  # though the second could have shared a convolution with the first


class Attending(Odd):
    """`nn.MultiheadAttention` is faster, and rounds otherwise, where nobody observes it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def between(self, features: Tensor) -> Tensor:
        rows = features.flatten(2)
        attended: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return attended.view_as(features)


@torch.no_grad()
def test_attention_that_asks_whether_it_is_observed() -> None:
    model = banked(Attending)
    draws = draws_of(model, [torch.zeros(model.num_layers).long()] * 2)
    (logits, cost), (expected, plain) = (f(draws, images_of(model)) for f in (together, one_by_one))
    assert torch.equal(logits, expected)
    assert cost == plain


def alike(model: BankedModel) -> list[nn.Module]:
    """Three draws: the first and the last differ in the head alone."""
    return draws_of(model, [torch.tensor(p) for p in ([0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1])])


@torch.no_grad()
def test_draws_that_were_changed_by_hand() -> None:
    model = banked(Stages)
    draws, images = alike(model), images_of(model)
    assert together(draws, images)[1] == 3 * 4 - 2 * 1 - 2
    network = draws[2].get_submodule("network")
    network.get_submodule("second").weight = nn.Parameter(torch.ones(3, 2, 1, 1))
    logits, cost = together(draws, images)
    assert torch.equal(logits, one_by_one(draws, images)[0])
    assert cost == 3 * 4 - 2 * 1

    network.get_submodule("first").stride = (2, 2)  # type: ignore[assignment]
    logits, cost = together(draws, images)
    assert torch.equal(logits, one_by_one(draws, images)[0])
    assert cost >= 3 * 4 - 2 * 1

    draws[1].get_submodule("normalize").get_buffer("mean").add_(0.5)
    assert torch.equal(draw_logits(draws, images), one_by_one(draws, images)[0])


@torch.no_grad()
def test_draws_of_several_models_and_other_modules() -> None:
    model, other = banked(Stages), copy.deepcopy(banked(Stages))
    images = images_of(model)
    draws = [*alike(model), nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), *alike(other)]
    logits, cost = together(draws, images)
    assert torch.equal(logits, one_by_one(draws, images)[0])
    assert cost == 6 * 4 + 1
    one_model = alike(model) + alike(other)
    assert torch.equal(draw_logits(one_model, images), one_by_one(one_model, images)[0])


@torch.no_grad()
def test_modules_without_tensors_are_not_taken_for_twins() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, images: Tensor) -> Tensor:
            return images.new_full((len(images), 10), self.value)

    logits = draw_logits([Constant(1.0), Constant(2.0)], torch.zeros(1, 1, 4, 4))
    assert logits[:, 0, 0].tolist() == [1, 2]


@torch.no_grad()
def test_draws_of_separate_networks_are_called_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = banked(Stages, granularity="model", banks=3)
    draws = draws_of(model, all_plans(model))
    monkeypatch.setattr("rlskit.models.sharing._Pass", None)
    images = images_of(model)
    assert torch.equal(draw_logits(draws, images), one_by_one(draws, images)[0])


@torch.no_grad()
def test_hooks_see_every_draw() -> None:
    model = banked(Stages)
    draws, images = alike(model), images_of(model)
    seen: list[Tensor] = []
    for draw in draws:
        module = draw.get_submodule("network.first")
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    draw_logits(draws, images)
    assert len(seen) == 3
    assert torch.equal(seen[2], seen[0])


class Residual(Stages):
    """In-place additions and ReLUs, as ResNets have them."""

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu_(self.first(images))
        deeper = self.second(features)
        deeper += features.sum(1, keepdim=True)
        features = F.relu_(deeper)
        logits: Tensor = self.head(self.third(features).mean(dim=(2, 3)))
        return logits


class Checkpointed(Odd):
    def between(self, features: Tensor) -> Tensor:
        again: Tensor = checkpoint(lambda x: x.sin().exp(), features, use_reentrant=False)
        return again


class Slope(Odd):
    """Takes a gradient on its way."""

    def between(self, features: Tensor) -> Tensor:
        with torch.enable_grad():
            point = features.detach().requires_grad_()
            (slope,) = torch.autograd.grad(point.sin().sum(), point)
        return features + slope


def with_gradient(
    answer: Callable[[list[nn.Module], Tensor], Tensor], draws: list[nn.Module], images: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Return the answer, the gradient of a weighted sum of it, and the products that both took."""
    points = images.clone().requires_grad_()
    with torch.enable_grad(), Products("convolution", "convolution_backward") as products:
        logits = answer(draws, points)
        weights = torch.linspace(1, 2, logits.numel()).view_as(logits).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), points)
    return logits.detach(), gradient, products.total


def separate(draws: list[nn.Module], images: Tensor) -> Tensor:
    return torch.stack([draw(images) for draw in draws])


@pytest.mark.parametrize(
    ("factory", "shares"),
    [
        (Stages, True), (Residual, True), (LookingAtValues, True), (ChangingModes, True),
        (Slope, True), (Concatenating, True), (OwnFunction, False), (Checkpointed, False),
        (Counting, False), (Noisy, False), (WrittenUncounted, False), (Binary, False),
    ],
)  # fmt: skip
def test_gradients_are_those_of_each_draw(factory: Callable[[], nn.Module], shares: bool) -> None:
    model = banked(factory).double()
    images = images_of(model).double()
    found = []
    for answer in (separate, draw_logits):
        torch.manual_seed(0)
        found.append(with_gradient(answer, draws_of(model, all_plans(model)), images))
    (expected, slope, cost), (logits, summed, shared) = found
    assert torch.equal(logits, expected)
    torch.testing.assert_close(summed, slope, rtol=1e-12, atol=1e-12 * slope.abs().max().item())
    # Of 16 draws in 2, 4 and 8 ways; the first convolution's gradient is the images', too.
    assert cost == 2 * 16 * 3
    assert shared == 2 * (2 + 4 + 8) if shares else shared >= cost


def test_a_graph_that_draws_share_may_be_gone_through_again() -> None:
    model = banked(Residual)
    points = images_of(model).requires_grad_()
    shared, plain = (f(alike(model), points).sum((0, 1)) for f in (draw_logits, separate))
    for one, other in zip(shared, plain, strict=True):  # as DeepFool and FAB, class by class
        slopes = [torch.autograd.grad(x, points, retain_graph=True)[0] for x in (one, other)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("protocol", "bf16"), [("multi", False), ("eot", False), ("multi", True)])
def test_attacked_draws_share(protocol: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = banked(Residual)
    images = images_of(model, 34)  # two pieces
    attackers_view(model, "transfer", 1, seed=0, repeat=0)  # the model tries its layout here

    def seen(_: list[nn.Module], points: Tensor) -> Tensor:
        view = attackers_view(model, protocol, 6, seed=0, repeat=0, bf16=bf16)
        logits: Tensor = view(points)
        return logits

    logits, summed, shared = with_gradient(seen, [], images)
    monkeypatch.setattr("rlskit.models.sharing._may_share", lambda *_: False)
    expected, slope, cost = with_gradient(seen, [], images)
    assert torch.equal(logits, expected)
    assert (summed - slope).norm() <= (0.02 if bf16 else 1e-6) * slope.norm()
    assert cost == 2 * 6 * 2 * 3  # pieces, draws, passes, convolutions
    assert shared < 0.8 * cost


@torch.no_grad()
def test_a_part_that_is_not_to_be_observed() -> None:
    model = banked(Stages)
    draws = alike(model)
    for draw in draws:
        draw.normalize = Unobserved(draw.normalize)  # type: ignore[arg-type]
    assert together(draws, images_of(model))[1] == 3 * 4


class Unobserved(nn.Sequential):
    is_observable = False


def test_inference_mode() -> None:
    model = banked(Stages)
    images = images_of(model)
    with torch.inference_mode():
        logits = draw_logits(alike(model), images)
        made_there = images * 1
    with torch.no_grad():
        assert torch.equal(logits, draw_logits(alike(model), images))
        assert torch.equal(logits, draw_logits(alike(model), made_there))


class Failing(Odd):
    def after(self, logits: Tensor) -> Tensor:
        if logits.max() > 1e3:
            raise ArithmeticError("too large")
        return logits


@torch.no_grad()
def test_an_error_of_a_draw_is_its_own_and_leaves_nothing_behind() -> None:
    model = banked(Failing)
    images = images_of(model)
    draws = alike(model)
    expected = one_by_one(draws, images)[0]
    bias = model.banks[1].get_parameter("head.bias")
    before = bias.detach().clone()
    bias.fill_(2e3)
    for order in itertools.permutations(draws):
        with pytest.raises(RunError, match=r"ArithmeticError: .*too large"):
            draw_logits(list(order), images)
    bias.copy_(before)
    assert torch.equal(draw_logits(draws, images), expected)
    assert torch.equal(one_by_one(draws, images)[0], expected)


@torch.no_grad()
def test_evaluation_still_names_the_draw_that_is_not_finite() -> None:
    model = banked(Stages)
    draws = alike(model)
    model.banks[1].get_parameter("head.bias").fill_(torch.inf)
    with pytest.raises(UntrustedError, match="draw 2 answers with NaN or infinite logits"):
        finite_logits(draws, images_of(model))


class Watched(Odd):
    """Counts, at the end of each pass, the results after the first convolution still alive."""

    convolved: list[weakref.ref[Tensor]] = []  # noqa: RUF012
    sines: list[weakref.ref[Tensor]] = []  # noqa: RUF012
    counts: list[tuple[int, int]] = []  # noqa: RUF012

    def between(self, features: Tensor) -> Tensor:
        sine = features.sin()
        self.convolved.append(weakref.ref(features))
        self.sines.append(weakref.ref(sine))
        return sine

    def after(self, logits: Tensor) -> Tensor:
        self.counts.append((living(self.convolved), living(self.sines)))
        return logits


def living(references: list[weakref.ref[Tensor]]) -> int:
    tensors = [reference() for reference in references]
    return len({id(tensor) for tensor in tensors if tensor is not None and not tensor.is_meta})


@torch.no_grad()
def test_little_is_kept_and_not_for_long() -> None:
    model = banked(Watched)
    draws = draws_of(model, all_plans(model))
    Watched.counts.clear()
    draw_logits(draws, images_of(model))
    # Those that part at the second convolution need the sine alone, until the first of them ran.
    assert Watched.counts == ([(0, 1)] * 4 + [(0, 0)] * 4) * 2
    assert (living(Watched.convolved), living(Watched.sines)) == (0, 0)
