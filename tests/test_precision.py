"""Gradients in bfloat16: what is computed in it, when it is used, and when it must not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit import attack, attack_all
from rlskit.attacks import prepare
from rlskit.data import Data
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.models.banks import BankedModel, Normalize
from rlskit.models.gradient_precision import GradientsInBf16
from rlskit.threat import precision, reached
from rlskit.threat.reached import Reached, compared, weaker_sentence

DATA = small_models.digits(precision.WORTH)
FEW = small_models.digits(8)
PGD: dict[str, Any] = {"eps": 0.1, "steps": 3, "step_size": 0.05}


@pytest.fixture(autouse=True)
def made_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any processor count as one with instructions for it: all can compute in it."""
    monkeypatch.setattr(precision, "gains_by_bf16", lambda _: True)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow more: on small images, one rounded sign is nearly the 1 %, and machines round apart."""
    monkeypatch.setattr(reached, "SHORTFALL", 0.2)


@pytest.fixture(scope="module")
def undefended() -> BankedModel:
    return small_models.trained("none", 1)


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 2)


class Offset(nn.Module):
    """Adds a number with a convolution and takes it away: nothing in float32, all in bfloat16."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.constant_(self.conv.bias, by)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        shifted: Tensor = self.conv(images)
        return shifted - self.by


class Typed(nn.Module):
    """Puts its logits into a tensor of float32, as detection heads do."""

    def forward(self, logits: Tensor) -> Tensor:
        own = torch.zeros(logits.shape, device=logits.device)
        return own.scatter(0, torch.arange(len(logits))[:, None].expand_as(logits), logits)


class Attention(nn.Module):
    """A transformer's block over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.block(images.flatten(0, 1))
        return rows[:, None]


def with_step(network: BankedModel, *, first: Any = (), last: Any = ()) -> nn.Module:
    """The trained network between further steps, as a module on pixels."""
    return nn.Sequential(Normalize(small_models.PIXELS), *first, network.banks[0], *last).eval()


def test_only_passes_for_gradients_are_in_bf16() -> None:
    linear = nn.Linear(3, 2, bias=False).requires_grad_(False)
    draw = GradientsInBf16(linear)
    x = torch.rand(5, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(draw(x)[:, 0].sum(), x)
    rounded = linear.weight[0].bfloat16().float()
    assert not torch.equal(rounded, linear.weight[0])
    assert torch.equal(slope, rounded.expand(5, 3))
    assert draw(x).dtype == torch.float32
    assert torch.equal(draw(x.detach()), linear(x.detach()))
    with torch.no_grad():
        assert torch.equal(draw(x), linear(x))


def spied() -> tuple[nn.Module, list[tuple[bool, bool]]]:
    """A layer that notes of each pass whether it is for gradients, and whether it is in bf16."""
    passes = []

    class Spy(nn.Identity):
        def forward(self, images: Tensor) -> Tensor:
            passes.append((images.requires_grad, torch.is_autocast_enabled("cpu")))
            return images

    return Spy(), passes


@pytest.mark.usefixtures("lenient")
def test_every_decision_is_in_fp32(undefended: BankedModel) -> None:
    spy, passes = spied()
    model = with_step(undefended, first=[spy])
    attack(model, FEW, **PGD, restarts=2, target="least-likely", precision="bf16")
    assert (True, True) in passes
    assert {bf16 for wanted, bf16 in passes if not wanted} == {False}


@pytest.mark.parametrize(("steps", "rough"), [(1, 1), (2, 1), (10, 9)])
def test_the_last_of_several_steps_is_in_fp32(steps: int, rough: int) -> None:
    spy, passes = spied()
    draw = GradientsInBf16(nn.Sequential(spy, nn.Flatten(), nn.Linear(4, 3)))
    images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    run = prepare("pgd", steps=steps, restarts=2, eot_samples=2)
    run(draw, images, labels, generator=torch.Generator())
    twice = [True] * (2 * rough) + [False] * (2 * (steps - rough))
    assert [bf16 for wanted, bf16 in passes if wanted] == twice * 2


@pytest.mark.usefixtures("lenient")
def test_auto_takes_bf16_where_it_reaches_as_much(undefended: BankedModel, tmp_path: Path) -> None:
    exact = attack(undefended, DATA, **PGD)
    rough = attack(undefended, DATA, **PGD, precision="auto", out=tmp_path)
    assert exact.attack is not None
    assert rough.attack is not None
    assert (exact.attack.precision, exact.attack.precision_check) == ("fp32", None)
    assert rough.attack.precision == "bf16"
    check = rough.attack.precision_check
    assert check is not None
    assert check.as_strong
    assert check.images == precision.CHECKED
    assert abs(check.left["bf16"] - check.left["fp32"]) <= 1
    assert check.loss.gain > 1
    assert 0 < abs(check.loss.shift) < 0.01 * check.loss.gain
    assert not rough.warnings
    assert abs(rough.accuracy["robust"].mean - exact.accuracy["robust"].mean) < 0.01
    with pytest.raises(RequestError, match="holds a finished run"):
        attack(undefended, DATA, **PGD, precision="auto", out=tmp_path)


@pytest.mark.parametrize("by", [512, 10_000])
def test_where_bf16_finds_less_auto_stays_exact_and_bf16_is_refused(
    undefended: BankedModel, by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_step(undefended, first=[Offset(by)])
    exact = attack(model, DATA, **PGD)
    auto = attack(model, DATA, **PGD, precision="auto")
    assert auto.attack is not None
    assert auto.attack.precision == "fp32"
    assert auto.attack.precision_check is not None
    assert not auto.attack.precision_check.as_strong
    assert auto.accuracy == exact.accuracy
    assert auto.warnings == exact.warnings
    with pytest.raises(UntrustedError, match=r"gradients in bf16 were not shown to find as much"):
        attack(model, DATA, **PGD, precision="bf16")
    monkeypatch.setattr(precision, "compared", lambda exact, _: compared(exact, exact))
    unseen = attack(model, DATA, **PGD, precision="auto")  # what the check saves from
    assert unseen.accuracy["robust"].mean > exact.accuracy["robust"].mean


@pytest.mark.parametrize("last", [[Typed()], [nn.Identity(), nn.Threshold(0, float("nan"))]])
def test_a_network_that_fails_in_bf16(
    undefended: BankedModel, last: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its types, or by what it answers there (here everywhere: as if it were so in bf16)."""
    if isinstance(last[-1], nn.Threshold):
        run = GradientsInBf16.forward

        def nan(self: GradientsInBf16, images: Tensor) -> Tensor:
            return run(self, images) * (float("nan") if images.requires_grad else 1)

        monkeypatch.setattr(GradientsInBf16, "forward", nan)
        model: Any = undefended
        kind: type[Exception] = UntrustedError
    else:
        model, kind = with_step(undefended, last=last), RequestError
    with pytest.raises(kind, match=r"cannot compute in `precision='bf16'`|NaN or infinite"):
        attack(model, DATA, **PGD, precision="bf16")
    found = attack(model, DATA, **PGD, precision="auto")
    assert found.attack is not None
    assert found.attack.precision == "fp32"


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("steps", [{"last": [nn.Sigmoid()]}, {"first": [Attention()]}])
def test_sigmoid_heads_and_transformers(undefended: BankedModel, steps: Any) -> None:
    torch.manual_seed(0)
    model = with_step(undefended, **steps)
    exact, rough = (attack(model, DATA, **PGD, precision=one) for one in ("fp32", "bf16"))
    assert abs(rough.accuracy["robust"].mean - exact.accuracy["robust"].mean) < 0.01
    assert rough.warnings == exact.warnings


@pytest.mark.parametrize(
    "how",
    [
        {"protocol": "eot", "n_attacked": 3},
        {"protocol": "eot", "n_attacked": 3, "risk": "gibbs"},
        {"protocol": "known", "n_samples": 2},
        {"protocol": "multi", "n_attacked": 2, "view": "mean-logit", "target": 3},
        {"per_example": True, "method": "fgsm", "step_size": None, "steps": None},
    ],
)
@pytest.mark.usefixtures("lenient")
def test_every_view_is_checked(rls: BankedModel, how: dict[str, Any]) -> None:
    found = attack(rls, FEW, **{**PGD, **how}, precision="bf16", batch_size=3)
    assert found.attack is not None
    check = found.attack.precision_check
    assert check is not None
    assert check.images == len(FEW)
    assert abs(check.loss.shift) < 0.05 * check.loss.gain
    assert check.loss.gain > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "half"}, "`precision` 'half' is unknown; it is one of fp32, bf16, auto"),
        ({"method": "cw", "precision": "bf16"}, "only follow their gradients .*, and cw decides"),
        ({"method": "apgd-ce", "precision": "bf16"}, "and apgd-ce decides by the answers"),
        ({"method": "square", "precision": "bf16"}, "and square decides"),
    ],
)
def test_refusals(undefended: BankedModel, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        attack(undefended, FEW, **given)


def test_other_engines_defenses_and_precisions_are_refused(undefended: BankedModel) -> None:
    pytest.importorskip("torchattacks")
    with pytest.raises(RequestError, match="not for `engine='torchattacks'`"):
        attack(undefended, FEW, engine="torchattacks", precision="bf16")
    noisy = small_models.model(1, "rse", layers=1)
    noisy.card.settings = {"init_sigma": 0.2, "inner_sigma": 0.1}
    with pytest.raises(RequestError, match="cannot serve `defense='rse'`, whose random numbers"):
        attack(noisy, FEW, precision="bf16")
    half = with_step(undefended).bfloat16()
    with pytest.raises(RequestError, match="this one computes in bfloat16"):
        attack(half, FEW, precision="bf16")
    with pytest.raises(RequestError, match="with `shuffle` more may come"):
        attack(undefended, small_models.digits(8).shuffled(0), precision="auto")


def test_auto_leaves_alone_what_bf16_cannot_serve(undefended: BankedModel) -> None:
    few: Data = small_models.digits(20)
    found = attack_all(
        undefended, few, attacks=[prepare("fgsm"), prepare("apgd-ce", steps=2)], precision="auto",
        options=EvalOptions(),
    )  # fmt: skip
    assert [one.attack.precision for one in found[:2] if one.attack] == ["fp32", "fp32"]


def _reached(*ends: float) -> Reached:
    found = torch.tensor([[-2.0] * len(ends), ends], dtype=torch.float64)
    return Reached(found, found)


def test_as_strong_is_what_surely_misses_little() -> None:
    exact = _reached(*[-1.0, 2.0] * 20)
    assert compared(exact, exact).as_strong
    assert compared(exact, _reached(*[-0.999, 1.999] * 20)).as_strong
    assert not compared(exact, _reached(*[-1.04, 2.04] * 20)).as_strong  # where it matters: less
    assert not compared(exact, _reached(*[-1.0, 1.9] * 20)).as_strong
    noisy = [-1.0, 2.0] * 18 + [-1.0, 3.0, -1.0, 1.0]  # as much on average, and who knows
    assert not compared(exact, _reached(*noisy)).as_strong
    near = _reached(*[-1e-9, 1e-9] * 20)
    two = compared(near, _reached(*[-1e-9, 1e-9] * 18, *[-1e-9] * 4))
    assert (two.left, two.as_strong) == ({"fp32": 20, "bf16": 22}, False)
    assert not compared(_reached(1.0), _reached(1.0)).as_strong  # one image tells nothing
    assert "of 40 images they left 22 and not 20" in weaker_sentence(two)
