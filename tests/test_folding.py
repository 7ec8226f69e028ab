"""Folding a draw for attacks: which BatchNorms go, and that nothing but rounding changes."""

import copy
import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rlskit
import small_models
from rlskit.defenses import draws
from rlskit.errors import RequestError
from rlskit.models import folding
from rlskit.models.folding import (
    Made,
    check_compiler,
    compile_draw,
    fold,
    foldable_pairs,
    ready_for_attack,
)

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """A convolution and a BatchNorm that may not be folded, besides a pair that may."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.fine, self.fine_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.fine_norm(self.fine(images)).relu()
        y = self.conv(x)
        if self.why == "the convolution runs twice":
            y = self.conv(y)
        z = self.norm(y)
        if self.why == "the norm runs twice":
            z = self.norm(z)
        if self.why == "something else reads the output":
            z = z + y
        if self.why == "something else read it before":
            z = z * y.sigmoid()
        if self.why == "something lies between":
            z = self.norm(y.relu())
        logits: Tensor = self.head(z.mean((2, 3)))
        return logits


def settled(network: nn.Module, seed: int = 0) -> Any:
    """The network in eval mode with BatchNorms that do something."""
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
            ):  # fmt: skip
                getattr(module, name).data.uniform_(low, high, generator=rng)
    return network.eval()


@pytest.mark.parametrize(
    "why",
    [
        "the convolution runs twice",
        "the norm runs twice",
        "something else reads the output",
        "something else read it before",
        "something lies between",
    ],
)
def test_only_a_norm_that_alone_reads_its_convolution_is_folded(why: str) -> None:
    network = settled(Twice(why))
    assert foldable_pairs(network, IMAGES) == (("fine", "fine_norm"),)
    before = network(IMAGES)
    folded = copy.deepcopy(network)
    fold(folded, (("fine", "fine_norm"),))
    assert type(folded.fine_norm) is nn.Identity
    torch.testing.assert_close(folded(IMAGES), before, atol=1e-5, rtol=1e-5)


def test_every_pair_is_found_where_nothing_stands_against_it() -> None:
    assert len(foldable_pairs(settled(Twice("")), IMAGES)) == 2


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("test_resnet", 15), ("torchvision:resnet18", 20), ("test_efficientnet", 13),
        ("test_vit", 0), ("regnetx_002", 44), ("mobilenetv3_small_050", 34),
    ],
)  # fmt: skip
def test_a_folded_draw_answers_as_before(name: str, pairs: int) -> None:
    model = rlskit.convert(name, data="cifar10")
    for seed, bank in enumerate(model.banks):
        settled(bank, seed)
    (plain,) = draws(model, 1, seed=3, purpose="attacker")
    stored = [{k: v.clone() for k, v in bank.items()} for bank in model.bank_tensors()]
    (ready,) = ready_for_attack(model, draws(model, 1, seed=3, purpose="attacker"))
    assert model.foldable is not None
    assert len(model.foldable) == pairs
    expected = plain(IMAGES)
    assert expected.abs().max() > 0.05
    error = (ready(IMAGES) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    points = IMAGES.clone().requires_grad_()
    gradients = [torch.autograd.grad(m(points)[:, 0].sum(), points)[0] for m in (plain, ready)]
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item()
    )
    for before, after in zip(stored, model.bank_tensors(), strict=True):
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_draw_that_would_answer_otherwise_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_tanh(seed: int) -> nn.Module:
        network = small_models.network(seed)
        network[1] = nn.Tanh()
        return network

    model = small_models.model(build=with_tanh)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert foldable_pairs(model.sampled(torch.tensor([0, 0])), images) == ()
    wrong = (("network.0", "network.2"),)  # as if the tanh between them had not been seen
    monkeypatch.setattr(folding, "foldable_pairs", lambda draw, images: wrong)
    (plain,) = draws(model, 1, seed=0, purpose="attacker")
    (ready,) = ready_for_attack(model, draws(model, 1, seed=0, purpose="attacker"))
    assert model.foldable == ()
    torch.testing.assert_close(ready(images), plain(images), rtol=1e-5, atol=1e-6)


def test_folded_draws_share_what_the_banks_share_and_follow_them() -> None:
    def build(seed: int) -> nn.Module:
        network = small_models.network(seed)
        network[1] = nn.Identity()
        settled(network, seed)
        return network

    model, made = small_models.model(build=build), Made()
    plans = [torch.tensor(plan) for plan in ([0, 0], [0, 1], [1, 1])]

    def places(index: int) -> list[int]:
        (ready,) = ready_for_attack(model, [model.sampled(plans[index])], made)
        return [ready.get_parameter(f"network.{n}").data_ptr() for n in ("0.weight", "6.weight")]

    first, second, third = map(places, range(3))
    assert model.foldable == (("network.0", "network.2"),)
    assert (first[0], second[1]) == (second[0], third[1])
    assert len({first[0], third[0]}) == len({first[1], second[1]}) == 2
    with torch.no_grad():
        model.banks[0].get_parameter("0.weight").mul_(2)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (ready,) = ready_for_attack(model, [model.sampled(plans[0])])  # of the banks as they are now
    torch.testing.assert_close(ready(images), model.sampled(plans[0])(images))


class Decaying(nn.Sequential):
    """Its weights are other data after each pass, and a buffer is its own in every draw."""

    filter: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__(*small_models.network(seed, batch_norm=False))
        self.register_buffer("filter", torch.ones(1, 1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        conv, *others = self
        assert isinstance(conv, nn.Conv2d)
        x: Tensor = conv(images) * self.filter
        conv.weight.data = conv.weight.data / 2
        for module in others:
            x = module(x)
        return x


def test_what_a_draw_makes_of_its_weights_is_no_other_draws() -> None:
    model, made = small_models.model(build=Decaying), Made()
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = torch.tensor([0, 1])
    expected, kept = model.sampled(plan)(images), []
    for _ in range(3):
        (ready,) = ready_for_attack(model, [model.sampled(plan)], made)
        torch.testing.assert_close(ready(images), expected)
        kept.append(len(made._made))
    assert kept == kept[:1] * 3, "what is held does not grow with the draws"


def test_what_is_no_classifier_is_left_alone() -> None:
    other: list[nn.Module] = [settled(Twice(""))]
    model = rlskit.convert("test_resnet", data="cifar10")
    assert ready_for_attack(model, other) is other
    assert model.foldable is None


@pytest.mark.slow
def test_a_compiled_draw_answers_as_before_for_any_batch_size() -> None:
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    model = small_models.model(2)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own compiler
        for seed in (0, 1):  # another draw takes the same code and other weights
            (ready,) = ready_for_attack(model, draws(model, 1, seed=seed, purpose="attacker"))
            compiled = compile_draw(ready)
            for some in (images, images[:5], images[:2]):
                points = some.clone().requires_grad_()
                both = [one(points) for one in (ready, compiled)]
                slopes = [torch.autograd.grad(logits[:, 0].sum(), points)[0] for logits in both]
                torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-5)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RequestError, match=r"`compiled` needs a C\+\+ compiler on the path"):
        check_compiler()
