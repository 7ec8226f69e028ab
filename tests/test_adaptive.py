"""The adaptive protocol: per image the worst of its parts, at less than their cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import small_models
from rlskit import attack_adaptively, compare, convert, seeds
from rlskit.attacks import prepare
from rlskit.cli import run as command
from rlskit.errors import RequestError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.models.layout import in_layout, layout_of
from rlskit.report import broken_by
from rlskit.seeds import Purpose
from rlskit.threat.adaptive import CLEAN, Adaptive, prepare_adaptive
from rlskit.threat.parts import Part

DATA = small_models.digits(30)
IMAGES, LABELS = DATA.images(range(30)), DATA.labels


@pytest.fixture(scope="module")
def undefended() -> BankedModel:
    return small_models.trained("none", 1)


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 2)


def short(model: BankedModel, *, eps: float, **fields: Any) -> Adaptive:
    """The protocol with a few steps of each part."""
    found = prepare_adaptive(model, eps=eps, steps=5, n_attacked=2, queries=20, **fields)
    few = {"steps": 5, "queries": 20, "restarts": 2}

    def cut(part: Part) -> Part:
        params = {**part.attack.params, **{k: few[k] for k in few.keys() & part.attack.params}}
        return dataclasses.replace(part, attack=dataclasses.replace(part.attack, params=params))

    parts, scouts = (tuple(map(cut, some)) for some in (found.parts, found.scouts))
    return dataclasses.replace(found, parts=parts, scouts=scouts)


def names(model: BankedModel, **fields: Any) -> list[str]:
    return [part.name for part in prepare_adaptive(model, eps=0.1, **fields).parts]


def test_the_parts(undefended: BankedModel, rls: BankedModel) -> None:
    ascents = ["pgd ce", "pgd margin", "pgd margin, further"]
    assert names(undefended) == [*ascents, "autoattack standard", "inward"]
    banks = ["bank 0", "bank 1", "mean of the banks", "mora"]
    random = ["arc", "autoattack rand", "square"]
    assert names(rls) == [*banks, *ascents, *random]
    assert names(rls, surrogate=[undefended]) == [*banks, "surrogate 0", *ascents, *random]
    ensemble = small_models.model(2, "ensemble", layers=1)
    assert names(ensemble) == [
        *banks, *ascents, "arc", "autoattack standard", "inward",
    ]  # fmt: skip
    noisy = convert("test_resnet", defense="weight-noise", image_size=16)
    assert names(noisy) == ["bank 0", "one draw", *ascents, *random]


def test_pgd_travels_two_and_a_half_times_the_budget(rls: BankedModel) -> None:
    for scale, eps in (("0:1", "8/255"), ("-1:1", "16/255")):
        first = prepare_adaptive(rls, eps=eps, steps=20, pixel_range=scale).parts[0].attack
        assert first.params["eps"] == pytest.approx(8 / 255)
        assert first.params["step_size"] * 20 == pytest.approx(2.5 * 8 / 255)


@pytest.mark.parametrize("eps", [0.03, 0.08])
def test_an_image_is_robust_if_it_withstands_every_part(
    undefended: BankedModel, eps: float
) -> None:
    """Without randomness that is exact: each part by itself, on all images, and their union."""
    threat = short(undefended, eps=eps)
    apart = tuple(dataclasses.replace(part, goes_on=False) for part in threat.parts)
    threat = dataclasses.replace(threat, parts=apart)
    crafted = threat.craft(undefended, IMAGES, LABELS, seed=0, repeat=0)
    draw = undefended.sampled(torch.tensor([0, 0]))
    alone = []
    for index, part in enumerate(threat.parts):
        noise = seeds.generator(0, Purpose.ADAPTIVE, 0, index)
        found = part.attack(draw, IMAGES, LABELS, generator=noise)
        alone.append(draw(found).argmax(-1) != LABELS)
    first = torch.stack(alone).int().argmax(0)
    broken = torch.stack(alone).any(0)
    assert 0 < broken.sum() < 30
    wrong = draw(IMAGES).argmax(-1) != LABELS
    origins = torch.where(wrong, CLEAN, torch.where(broken, first, -1))
    assert torch.equal(crafted.columns["broken_by"], origins)
    assert torch.equal(crafted.images[wrong], IMAGES[wrong])
    assert torch.equal(draw(crafted.images).argmax(-1) != LABELS, broken)
    assert (crafted.images - IMAGES).abs().max() <= eps + 1e-6


def test_what_is_broken_is_left_alone(rls: BankedModel) -> None:
    """The protocol costs less than half of its parts one after the other."""
    cost, accuracy = {}, {}
    for early_exit in (True, False):
        threat = short(rls, eps=0.25, early_exit=early_exit)
        crafted = threat.craft(rls, IMAGES, LABELS, seed=0, repeat=0)
        cost[early_exit] = crafted.forwards, crafted.backwards
        answers = (
            torch.stack([rls(crafted.images, torch.tensor([a, b])) for a in (0, 1) for b in (0, 1)])
            .softmax(-1)
            .mean(0)
        )
        accuracy[early_exit] = (answers.argmax(-1) == LABELS).double().mean()
    assert cost[True][0] < cost[False][0] / 2
    assert cost[True][1] < cost[False][1] / 2
    assert accuracy[True] <= accuracy[False] + 0.05


class Constant(torch.nn.Module):
    """A draw that gives every image the same two probabilities."""

    def __init__(self, of_label: float) -> None:
        super().__init__()
        self.probabilities = torch.tensor([of_label, 1 - of_label])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.probabilities.log().expand(len(images), 2)


def test_what_is_surely_broken_by_hand(rls: BankedModel) -> None:
    """Judges lead by 0.2 or by -0.8: mean -0.3, standard deviation 0.5 sqrt(50 / 49)."""
    judges: list[torch.nn.Module] = [Constant(of_label) for of_label in [0.6, 0.1] * 25]
    labels = torch.zeros(1).long()
    for answering, surely in ((10, False), (20, True)):
        threat = prepare_adaptive(rls, eps=0.1, n_samples=answering)
        lead, sure = threat._judged(judges, IMAGES[:1], labels)
        by_hand = -0.3 / (0.5 * (50 / 49 / answering) ** 0.5)
        assert lead.item() == pytest.approx(by_hand, rel=1e-5)  # -1.88 and -2.66 standard errors
        assert bool(sure) is surely
    few = dataclasses.replace(threat, answering=None)
    assert [t.item() for t in few._judged(judges, IMAGES[:1], labels)] == [
        pytest.approx(-0.3), False  # half of the judges are right
    ]  # fmt: skip
    assert few._judged(judges[1:2], IMAGES[:1], labels)[1].item()


def test_the_last_resort_is_for_what_is_not_broken_at_all(rls: BankedModel) -> None:
    threat = prepare_adaptive(rls, eps=0.1)
    lead, sure = torch.tensor([3.0, -1.0, -9.0]), torch.tensor([False, False, True])
    *others, auto, square = threat.parts
    assert {tuple(threat._open(part, lead, sure).tolist()) for part in others} == {
        (True, True, False)
    }
    for part in (auto, square):
        assert threat._open(part, lead, sure).tolist() == [True, False, False]
    whole = dataclasses.replace(threat, early_exit=False)
    assert all(whole._open(part, lead, sure).all() for part in whole.parts)


def test_the_dear_parts_attack_images_in_doubt_only(undefended: BankedModel) -> None:
    """Those that are right, and that one of the scouts breaks within 1.2 budgets."""
    threat = short(undefended, eps=0.03)
    dear = [part for part in threat.parts if part.dear]
    assert [part.name for part in dear] == ["autoattack standard", "inward"]
    assert threat.facts()["attack"].in_doubt == 1.2
    draw = undefended.sampled(torch.tensor([0, 0]))
    right = draw(IMAGES).argmax(-1) == LABELS
    in_doubt = torch.zeros_like(right)
    for index, scout in enumerate(threat.scouts, 1):
        assert scout.attack.eps == pytest.approx(0.036)
        noise = seeds.generator(0, Purpose.ADAPTIVE, 0, index)
        found = scout.attack(draw, IMAGES, LABELS, generator=noise)
        in_doubt |= draw(found).argmax(-1) != LABELS
    attacked = []

    def noting(_: Any, images: torch.Tensor, labels: torch.Tensor, **__: Any) -> torch.Tensor:
        attacked.append(labels)
        return images

    part: Any = dataclasses.replace(dear[0], attack=cast(Any, noting))
    for early_exit, some in ((True, right & in_doubt), (False, torch.ones_like(right))):
        alone = dataclasses.replace(threat, parts=(part,), early_exit=early_exit)
        alone.craft(undefended, IMAGES, LABELS, seed=0, repeat=0)
        assert torch.equal(attacked.pop(), LABELS[some])
    assert 0 < (right & in_doubt).sum() < right.sum()
    whole = dataclasses.replace(threat, early_exit=False)
    assert whole.facts()["attack"].in_doubt is None


def test_pgd_goes_on_from_the_worst_version_so_far(undefended: BankedModel) -> None:
    """Ten steps, then ten from where they ended, are twenty: without randomness bit by bit."""
    seen = prepare_adaptive(undefended, eps=0.05).parts[0].view
    steps: dict[str, Any] = {
        "eps": 0.05,
        "step_size": 0.002,
        "loss": "margin",
        "random_start": False,
    }
    half, whole = prepare("pgd", steps=10, **steps), prepare("pgd", steps=20, **steps)
    parts = (Part("first", half, seen, 1), Part("further", half, seen, 1, goes_on=True))
    threat = prepare_adaptive(undefended, eps=0.05, early_exit=False)
    crafted = dataclasses.replace(threat, parts=parts).craft(
        undefended, IMAGES, LABELS, seed=0, repeat=0
    )
    noise = seeds.generator(0, Purpose.ATTACK)
    view = seen(seed=0, repeat=0, image=None)
    expected = whole(view, in_layout(IMAGES, layout_of(undefended)), LABELS, generator=noise)
    further = crafted.columns["broken_by"] == 1
    assert further.any()
    assert torch.equal(crafted.images[further], expected[further].contiguous())


def test_batch_mates_do_not_matter(undefended: BankedModel) -> None:
    threat = short(undefended, eps=0.05)
    together = threat.craft(undefended, IMAGES[:8], LABELS[:8], seed=0, repeat=0).images
    for i in (0, 3, 7):
        alone = threat.craft(undefended, IMAGES[i : i + 1], LABELS[i : i + 1], seed=0, repeat=0)
        torch.testing.assert_close(alone.images[0], together[i], rtol=0, atol=1e-4)


def test_the_result_tells_what_broke_what(
    rls: BankedModel, undefended: BankedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlskit.evaluation.attacking.prepare_adaptive", short)
    result = attack_adaptively(
        rls, small_models.digits(6), eps=0.1, repeats=2, n_samples=4, surrogate=[undefended]
    )
    assert (result.protocol, result.n_attacked) == ("adaptive", 2)
    assert result.attack is not None
    assert result.attack.broken is not None
    assert list(result.attack.broken) == ["clean", *names(rls, surrogate=[undefended])]
    assert 0 < sum(result.attack.broken.values()) <= 12
    assert "wrong as they are" in broken_by(result)
    assert result.accuracy["robust"].mean < result.accuracy["clean"].mean
    assert result.perturbation is not None
    assert result.perturbation["linf"].max <= 0.1 + 1e-6


def test_another_surrogate_is_another_request(rls: BankedModel, undefended: BankedModel) -> None:
    others = undefended, small_models.model(1, "none")
    facts = [short(rls, eps=0.1, surrogate=[other]).facts() for other in others]
    assert facts[0] != facts[1]
    assert facts[0] == short(rls, eps=0.1, surrogate=[undefended]).facts()


def test_few_members_are_attacked_until_all_of_them_err() -> None:
    """The risk of a single draw counts, too: a mean that errs is not enough."""
    model = small_models.trained("ensemble", 3)
    threat = short(model, eps=0.1)
    crafted = threat.craft(model, IMAGES, LABELS, seed=0, repeat=0)
    whole = dataclasses.replace(threat, early_exit=False)
    everything = whole.craft(model, IMAGES, LABELS, seed=0, repeat=0)
    plans = [torch.tensor([bank, bank]) for bank in range(3)]

    def right(images: torch.Tensor) -> float:
        answers = torch.stack([model(images, plan).argmax(-1) == LABELS for plan in plans])
        return float(answers.double().mean())

    assert right(crafted.images) <= right(everything.images) + 0.02
    assert crafted.forwards < everything.forwards


def test_two_adaptive_runs_can_be_compared(
    rls: BankedModel, undefended: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlskit.evaluation.attacking.prepare_adaptive", short)
    data = small_models.digits(4)
    attack_adaptively(rls, data, eps=0.1, n_samples=2, out=tmp_path / "a")
    attack_adaptively(undefended, data, eps=0.1, out=tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert "adaptive" in str(found.to_json())


def test_the_command(
    undefended: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    checkpoint.save(undefended, "x.safetensors")
    for wrong, message in (
        (["--eps", "0.1", "--method", "fgsm"], "--method is no option of the adaptive protocol"),
        ([], "the adaptive protocol needs a budget, such as --eps 8/255"),
        (["--eps", "0.1", "--view", "mean-logit"], "chooses engine, view, risk and precision"),
        (["--eps", "0.1", "--precision", "bf16"], "chooses engine, view, risk and precision"),
    ):
        assert command(["attack", "x.safetensors", "--protocol", "adaptive", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert command(["attack", "x.safetensors", "--surrogate", "x.safetensors"]) == 2
    assert "--surrogate is an option of --protocol adaptive" in capsys.readouterr().err


def test_wrong_requests(rls: BankedModel) -> None:
    with pytest.raises(RequestError, match="more than the whole pixel range"):
        prepare_adaptive(rls, eps=8)
    with pytest.raises(RequestError, match="`norm` 'l7' is unknown"):
        prepare_adaptive(rls, eps=0.1, norm="l7")
    with pytest.raises(RequestError, match="`n_attacked` must be at least 1, not 0"):
        prepare_adaptive(rls, eps=0.1, n_attacked=0)
    other = small_models.model(1, "none")
    other.card.classes = 7
    with pytest.raises(RequestError, match=r"the surrogate takes images of .* knows 7 classes"):
        prepare_adaptive(rls, eps=0.1, surrogate=[other])


def test_a_surrogate_s_images_count(undefended: BankedModel) -> None:
    """A part of its name attacks the mean of its banks, and what that breaks is broken."""
    bare = prepare_adaptive(undefended, eps=0.1, steps=20, surrogate=[undefended])
    part = bare.parts[0]
    assert (part.name, part.n_attacked) == ("surrogate 0", 1)
    only = dataclasses.replace(bare, parts=(part,))
    crafted = only.craft(undefended, IMAGES, LABELS, seed=0, repeat=0)
    direct = prepare("pgd", eps=0.1, steps=20, step_size=0.1 * 2.5 / 20)(
        undefended.sampled(torch.tensor([0, 0])), IMAGES, LABELS,
        generator=seeds.generator(0, Purpose.ADAPTIVE, 0, 0),
    )  # fmt: skip
    wrong = undefended.sampled(torch.tensor([0, 0]))(direct).argmax(-1) != LABELS
    assert wrong.sum() >= 10
    assert torch.equal(crafted.columns["broken_by"] != -1, wrong)
    several = small_models.model(3, "ensemble", layers=1)
    pair = prepare_adaptive(undefended, eps=0.1, surrogate=[undefended, several]).parts[:2]
    assert [(part.name, part.n_attacked) for part in pair] == [
        ("surrogate 0", 1), ("surrogate 1", 3),
    ]  # fmt: skip
