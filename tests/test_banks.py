"""A sampled model is, bit for bit, the network that one assembles by hand from the state dicts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit.errors import RequestError
from rlskit.models import BankedModel, Card, Classifier, resolve
from rlskit.models.architecture import Architecture
from rlskit.models.building import build, build_on_meta, configure
from rlskit.models.copying import duplicate
from rlskit.models.listing import list_models
from rlskit.models.partition import partition
from rlskit.models.published import library_pixels
from rlskit.models.trace import tensor_names, trace
from rlskit.pixels import Pixels
from small_models import Recurrent

TINY = [f"timm:{name}" for name in list_models("test_*")]
ODD = [  # LevIT remembers biases in eval mode, CoAT registers modules twice
    "levit_128s", "efficientvit_m0", "coat_lite_tiny", "mobilenetv3_small_050",
    "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small",
]  # fmt: skip


def banked(
    factory: Callable[[], nn.Module],
    pixels: Pixels,
    *,
    banks: int = 2,
    bank_only: str | None = None,
    architecture: Architecture | None = None,
) -> BankedModel:
    """A model of differing banks, in eval mode; even constants such as BatchNorm's differ."""
    networks = []
    for seed in range(banks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(unlike(factory(), seed).eval())
    parts = partition(networks[0], trace(networks[0], pixels.shape), "layer", bank_only)
    card = Card(architecture or Architecture("own", "test"), pixels, 10)
    return BankedModel(networks, parts, card).eval()


def unlike(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in tensor_names(network).values()}.values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(1 + 0.1 * noise).add_(0.001 * noise)
    return network


def by_hand(model: BankedModel, plan: Tensor, network: nn.Module) -> nn.Module:
    """Assemble the network of `plan` from the banks' state dicts."""
    states = [bank.state_dict() for bank in model.banks]
    chosen = dict(states[0])
    for layer, bank in zip(model.partition.layers, plan.tolist(), strict=True):
        chosen |= {name: states[bank][name].clone() for name in layer.tensors}
    network.load_state_dict(chosen, strict=True)
    return network.eval()


def pixels_of(size: tuple[int, int], channels: int = 3) -> Pixels:
    return Pixels(channels, *size, (0.4,) * channels, (0.25,) * channels)


def images_for(model: BankedModel) -> tuple[Tensor, Tensor]:
    """Two images, and what the networks themselves read."""
    images = torch.rand(2, *model.card.pixels.shape, generator=torch.Generator().manual_seed(7))
    return images, (images - 0.4) / 0.25


@torch.no_grad()
def answers(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of a network as it is, and of one whose weights need no gradient.

    Even under `no_grad`, torch picks another kernel for a product of such weights now and then.
    """
    return network(inputs), copy.deepcopy(network).requires_grad_(False)(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TINY, *ODD])
@torch.no_grad()
def test_sampled_models_are_the_networks(name: str) -> None:
    side = library_pixels(resolve(name))["height"] if name in TINY else 64
    architecture = configure(resolve(name), classes=10, channels=3, image_size=(side, side))
    model = banked(lambda: build(architecture), pixels_of((side, side)))
    images, inputs = images_for(model)
    mixed = torch.arange(model.num_layers) % 2
    expected = {
        mixed: answers(by_hand(model, mixed, build(architecture)), inputs),
        **{
            torch.full_like(mixed, m): answers(copy.deepcopy(bank), inputs)
            for m, bank in enumerate(model.banks)
        },
    }
    outputs = [output for output, _ in expected.values()]
    assert all(output.isfinite().all() for output in outputs)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    for _ in range(2):  # nothing of one plan is left over for the next
        for plan, (output, frozen) in expected.items():
            assert torch.equal(model(images, plan), output)
            assert torch.equal(model.sampled(plan)(images), frozen)
        for bank, output in zip(model.banks, outputs[1:], strict=True):
            assert torch.equal(bank(inputs), output)


class Tied(nn.Module):
    """A tied weight, a module under two names, a token and a BatchNorm: `[B, 1, 4, 4]` to 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.once = nn.Linear(16, 16)
        self.twice = self.once
        self.token = nn.Parameter(torch.randn(16))
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images.flatten(1)) + self.token
        features = self.norm(self.second(features.relu()))
        features = self.twice(self.once(features.relu()).relu())
        logits: Tensor = self.head(features)
        return logits


SMALL = pixels_of((4, 4), 1)


@pytest.mark.parametrize("factory", [Tied, Recurrent])
@pytest.mark.parametrize("bank_only", [None, "head"])
@torch.no_grad()
def test_every_plan_of_a_hand_written_network(
    factory: Callable[[], nn.Module], bank_only: str | None
) -> None:
    model = banked(factory, SMALL, bank_only=bank_only)
    images, inputs = images_for(model)
    for number in range(2**model.num_layers):
        plan = torch.tensor([number >> layer & 1 for layer in range(model.num_layers)])
        assembled = by_hand(model, plan, factory())(inputs)
        assert torch.equal(model(images, plan), assembled)
        assert torch.equal(model.sampled(plan)(images), assembled)


def test_layers_of_the_hand_written_network() -> None:
    model = banked(Tied, SMALL)
    assert [layer.name for layer in model.partition.layers] == ["first", "once", "head"]
    assert set(model.partition.layers[0].tensors) == {
        "first.weight", "first.bias", "second.weight", "second.bias", "token",
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked",
    }  # fmt: skip
    assert (model.num_banks, model.num_layers) == (2, 3)


def test_what_was_tied_stays_tied_in_a_draw() -> None:
    model = banked(Tied, SMALL)
    network = model.sampled(torch.tensor([1, 0, 1])).network
    assert isinstance(network, Tied)
    assert network.first.weight is network.second.weight
    assert network.once is network.twice


def test_a_draw_shares_storage_and_needs_no_gradient() -> None:
    model = banked(Tied, SMALL)
    plan = torch.tensor([1, 0, 1])
    draw = model.sampled(plan)
    found = tensor_names(draw.network)
    for name, tensor in model.tensors(plan).items():
        assert found[name].data_ptr() == tensor.data_ptr()
    assert not any(parameter.requires_grad for parameter in draw.parameters())
    images, _ = images_for(model)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(draw(images).sum(), images)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        model.banks[1].get_parameter("head.bias").add_(1)
    assert torch.equal(draw(images), model(images, plan))


def test_a_draw_stays_in_eval_mode() -> None:
    model = banked(Tied, SMALL)
    draw = model.sampled(torch.tensor([0, 1, 0]))
    images, _ = images_for(model)
    before, statistics = draw(images), model.banks[0].get_buffer("norm.running_mean").clone()
    assert draw.train() is draw
    assert not any(module.training for module in draw.modules())
    assert torch.equal(draw(images), before)
    assert torch.equal(model.banks[0].get_buffer("norm.running_mean"), statistics)


def test_a_draw_normalises_images_as_the_card_says() -> None:
    pixels = Pixels(2, 1, 1, (0.25, 0.5), (0.5, 0.125))
    model = banked(lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), pixels)
    seen: list[Tensor] = []
    draw = model.sampled(torch.tensor([0]))
    draw.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draw(torch.tensor([0.75, 0.25]).view(1, 2, 1, 1))
    assert seen[0].flatten().tolist() == [1.0, -2.0]  # (0.75 - 0.25) / 0.5, (0.25 - 0.5) / 0.125


def test_training_reaches_the_chosen_banks_only() -> None:
    model = banked(Tied, SMALL, banks=3).train()
    images, _ = images_for(model)
    before = [bank.get_buffer("norm.running_mean").clone() for bank in model.banks]
    model(images, torch.tensor([2, 0, 1])).square().sum().backward()
    homes = {name: i for i, layer in enumerate(model.partition.layers) for name in layer.tensors}
    chosen = [2, 0, 1]
    for m, bank in enumerate(model.banks):
        for name, parameter in bank.named_parameters():
            assert (parameter.grad is not None) == (chosen[homes[name]] == m), (m, name)
            assert parameter.grad is None or parameter.grad.abs().max() > 0, name
        changed = not torch.equal(bank.get_buffer("norm.running_mean"), before[m])
        assert changed == (m == 2)
        assert int(bank.get_buffer("norm.num_batches_tracked")) == (m == 2)


@pytest.mark.parametrize("name", ["levit_128s", "coat_lite_tiny"])
def test_a_gradient_step_through_a_plan_leaves_the_other_banks_alone(name: str) -> None:
    architecture = configure(resolve(name), classes=10, channels=3, image_size=(224, 224))
    meta = build_on_meta(architecture)
    model = BankedModel(
        [build(architecture) for _ in range(2)],
        partition(meta, trace(meta, (3, 224, 224))),
        Card(architecture, pixels_of((224, 224)), 10),
    )
    own = [dict(bank.named_parameters(remove_duplicate=False)) for bank in model.banks]
    model(images_for(model)[0], torch.ones(model.num_layers, dtype=torch.long)).sum().backward()
    for bank, parameters in zip(model.banks, own, strict=True):
        now = dict(bank.named_parameters(remove_duplicate=False))
        assert all(now[name] is parameter for name, parameter in parameters.items())
    assert all(parameter.grad is None for parameter in own[0].values())
    assert any(parameter.grad is not None for parameter in own[1].values())


def test_bank_only_shares_the_rest() -> None:
    model = banked(Recurrent, SMALL, bank_only="head")
    first, second = (dict(bank.named_parameters()) for bank in model.banks)
    assert {name for name in first if first[name] is second[name]} == {
        "rows.weight_ih_l0", "rows.weight_hh_l0", "rows.bias_ih_l0", "rows.bias_hh_l0",
    }  # fmt: skip
    images, _ = images_for(model)
    with torch.no_grad():
        before = model(images, torch.tensor([1]))
        first["rows.weight_ih_l0"].add_(1)
        after = model(images, torch.tensor([1]))
        assert torch.equal(after, model.sampled(torch.tensor([1]))(images))
        assert torch.equal(after, model.banks[1]((images - 0.4) / 0.25))
    assert not torch.equal(before, after)


def test_shared_buffers_stay_shared_when_the_model_moves() -> None:
    model = banked(Tied, SMALL, bank_only="head").double()  # as .to(device) does
    means = [bank.get_buffer("norm.running_mean") for bank in model.banks]
    assert means[0].dtype == torch.float64
    assert means[0] is means[1]


@pytest.mark.parametrize(
    "plan",
    [[0, 1], [0, 1, 0, 1], [0, 1, 2], [0, -1, 0], [0.0, 1.0, 0.0], [True, False, True],
     [[0, 1, 0]], 0],
)  # fmt: skip
def test_wrong_plans_are_refused(plan: object) -> None:
    model = banked(Tied, SMALL)
    for use in (model.tensors, model.sampled):
        with pytest.raises(RequestError, match="a plan is 3 bank indices below 2, not"):
            use(torch.tensor(plan))


def test_banks_of_two_architectures_are_refused() -> None:
    model = banked(Recurrent, SMALL)
    with pytest.raises(RequestError, match="not of one architecture"):
        BankedModel([Recurrent(), Tied()], model.partition, model.card)


class Unsaved(nn.Module):
    """Random features that no state dict holds."""

    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(16, 8), persistent=False)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1) @ self.directions)
        return logits


def test_a_random_buffer_that_is_never_saved_is_refused() -> None:
    with pytest.raises(RequestError, match="buffer directions is random"):
        banked(Unsaved, SMALL)


class Averaging(nn.Module):
    """Keeps statistics as people write them: by assigning, to a buffer and to a parameter."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.code = nn.Parameter(torch.ones(1))
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images.flatten(1)) * self.code
        if self.training:
            self.seen = 0.5 * self.seen + features.mean()
            self.code = nn.Parameter(self.code + 1)
        logits: Tensor = self.head(features)
        return logits


@pytest.mark.parametrize("bank_only", [None, "head"])
def test_what_a_pass_assigns_is_of_the_chosen_bank(bank_only: str | None) -> None:
    model = banked(Averaging, SMALL, bank_only=bank_only).train()
    banks = model.bank_tensors()
    other, old = ({n: t.detach().clone() for n, t in bank.items()} for bank in banks)
    images = images_for(model)[0]
    inputs = model.normalize(images).flatten(1)
    mean = float((inputs @ old["body.weight"].T + old["body.bias"]).mean())
    for _ in range(2):
        model(images, torch.ones(model.num_layers, dtype=torch.long))
    first, second = model.bank_tensors()
    once, twice = mean * float(old["code"]), mean * (float(old["code"]) + 1)
    assert float(second["seen"]) == pytest.approx(0.25 * float(old["seen"]) + 0.5 * once + twice)
    assert torch.allclose(second["code"], old["code"] + 2)
    shared = {name for name in first if first[name] is second[name]}
    assert shared >= {"seen", "code"} if bank_only else not shared
    assert all(torch.equal(first[name], other[name]) for name in first.keys() - shared)


class Lists(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def test_a_classifier_unwraps_the_logits_of_an_output_object() -> None:
    class Output(nn.Module):
        def forward(self, images: Tensor) -> object:
            return type("Answer", (), {"logits": images.flatten(1)})()

    model = banked(Tied, SMALL)
    assert Classifier(Output(), model.normalize)(torch.zeros(3, 1, 4, 4)).shape == (3, 16)
    with pytest.raises(
        RequestError, match=r"features of shape \[3, 1, 4, 4\] 0, not \[B, classes\]"
    ):
        Classifier(Lists(), model.normalize)(torch.zeros(3, 1, 4, 4))


class NoDecay(nn.Parameter):
    """One that an optimizer is to tell apart, as geoopt's are."""


def test_a_draw_of_parameters_of_another_class() -> None:
    def build(seed: int) -> nn.Module:
        network = small_models.network(seed)
        network[0].bias = NoDecay(torch.full((6,), float(seed)))
        return network

    model = small_models.model(build=build)
    draw = model.sampled(torch.tensor([1, 0]))
    assert draw.get_parameter("network.0.bias").tolist() == [1.0] * 6


class Intricate(nn.Module):
    """What networks keep in modules: shared containers, and other ways to what they hold."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.empty: dict[str, int] = {} if inner is None else inner.empty
        self.parts = [inner, {"weight": self.weight}, ({1, 2}, [3])]
        self.inner = inner


class Forgetful(Intricate):
    """It leaves something out of what is copied of it."""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "parts": ["short"]}


class Alone(nn.Module):
    """There is one of it."""

    def __deepcopy__(self, memo: dict[int, object]) -> Alone:
        return self


def test_a_copy_is_what_python_makes_of_it() -> None:
    network: Any = nn.Sequential(Intricate(Forgetful()), nn.Conv2d(1, 1, 1), Alone())
    copies: list[Any] = [copy.deepcopy(network), duplicate(network)]
    for copied in copies:
        outer = copied[0]
        assert outer.parts[0] is outer.inner is not network[0].inner
        assert outer.parts[1]["weight"] is outer.weight is not network[0].weight
        assert torch.equal(outer.weight, network[0].weight)
        assert outer.parts[2] == ({1, 2}, [3])
        assert outer.parts[2][1] is not network[0].parts[2][1]
        assert outer.empty is outer.inner.empty is not network[0].empty
        assert outer.inner.parts == ["short"]
        assert copied[2] is network[2]
        copied[1].register_forward_hook(lambda *_: None)
        assert not network[1]._forward_hooks
