"""Draws: pure functions of their key, uniform, nested, and of the right networks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import small_models
from rlskit import seeds
from rlskit.conversion import convert
from rlskit.defenses import DEFENSES, defense_of, draws
from rlskit.defenses.rls import sample_plan
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.partition import Layer, Partition
from rlskit.models.trace import tensor_names
from rlskit.seeds import Purpose


def many_layers(banks: int, defense: str = "rls") -> BankedModel:
    """A model with every tensor of the small network in a layer of its own: L = 9."""
    model = small_models.model(banks, defense)
    names = tensor_names(model.banks[0])
    layers = tuple(Layer(name, (name,)) for name in names)
    # Fresh networks start with the same BatchNorm tensors: tell all banks' apart.
    for bank, tensors in enumerate(model.bank_tensors()):
        for tensor in tensors.values():
            tensor.data.add_(bank)
    return BankedModel(list(model.banks), Partition("layer", layers), model.card)


def plans(model: BankedModel, count: int = 4, **key: Any) -> list[tuple[int, ...]]:
    chosen: dict[str, Any] = {"seed": 0, "purpose": "defender", **key}
    return [small_models.plan_of(draw, model) for draw in draws(model, count, **chosen)]


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("the global random state was used")


@pytest.mark.parametrize("defense", ["rls", "ensemble"])
def test_draws_depend_on_their_key_alone(defense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = many_layers(3, defense)
    first = plans(model)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch, "rand", never)
    monkeypatch.setattr(torch, "randn", never)
    torch.manual_seed(1234)
    assert plans(model.train()) == first
    assert plans(model.eval()) == first
    torch.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("defense", ["rls", "ensemble"])
def test_fewer_draws_are_the_first_of_more(defense: str) -> None:
    model = many_layers(3, defense)
    assert plans(model, 2) == plans(model, 7)[:2]
    assert plans(model, 3, first=4) == plans(model, 7)[4:]


def test_every_part_of_the_key_counts() -> None:
    model = many_layers(2)
    keys: list[dict[str, Any]] = [
        {},
        {"purpose": "attacker"},
        {"repeat": 1},
        {"seed": 1},
        {"first": 4},
    ]
    found = [plans(model, **key) for key in keys]
    assert len({plan for several in found for plan in several}) > 15  # of 20, among 512


def test_banks_are_drawn_uniformly_and_independently() -> None:
    model = many_layers(3)
    count = 3000
    found = torch.stack(
        [sample_plan(model, seeds.generator(0, Purpose.DEFENDER, 0, i)) for i in range(count)]
    )
    assert found.shape == (count, 9)
    single = torch.stack([(found == bank).double().mean(0) for bank in range(3)])
    assert (single - 1 / 3).abs().max() < 0.035  # 4 standard deviations
    pairs = Counter(map(tuple, found[:, :2].tolist()))
    assert all(abs(pairs[i, j] / count - 1 / 9) < 0.024 for i in range(3) for j in range(3))


@pytest.mark.parametrize("repeat", range(5))
def test_an_ensemble_gives_each_member_once_in_m_draws(repeat: int) -> None:
    model = many_layers(4, "ensemble")
    found = plans(model, 8, repeat=repeat)
    pure = [(bank,) * 9 for bank in range(4)]
    assert sorted(found[:4]) == sorted(found[4:]) == pure


def test_the_attacked_member_varies_over_repeats() -> None:
    model = many_layers(4, "ensemble")
    assert {plans(model, 1, purpose="attacker", repeat=r)[0][0] for r in range(20)} == set(range(4))


def test_no_defense_is_the_network() -> None:
    model = small_models.model(1, "none")
    images = small_models.digits(8).images(range(8))
    wanted = model.banks[0](model.normalize(images))
    for purpose in ("attacker", "defender"):
        for draw in draws(model, 2, seed=3, purpose=purpose, repeat=1):
            assert torch.equal(draw(images), wanted)


def test_a_draw_is_deaf_to_training_mode() -> None:
    model = small_models.model(2, build=lambda seed: small_models.network(seed, dropout=0.5))
    images = small_models.digits(8).images(range(8))
    (draw,) = draws(model, 1, seed=0, purpose="attacker")
    before = draw(images)
    model.train()
    assert torch.equal(draw.train()(images), before)
    assert torch.equal(draws(model, 1, seed=0, purpose="attacker")[0](images), before)


def test_a_draw_is_the_network_assembled_by_hand() -> None:
    model = small_models.model(2)
    images = small_models.digits(8).images(range(8))
    for draw in draws(model, 6, seed=0, purpose="defender"):
        plan = small_models.plan_of(draw, model)
        assembled = small_models.network(9).eval()
        state = {
            name: model.banks[bank].state_dict()[name]
            for layer, bank in zip(model.partition.layers, plan, strict=True)
            for name in layer.tensors
        }
        assembled.load_state_dict(state)
        assert torch.equal(draw(images), assembled(model.normalize(images)))


def test_groups_of_a_training_step() -> None:
    generator = torch.Generator().manual_seed(0)
    rls, ensemble, none = (DEFENSES[name] for name in ("rls", "ensemble", "none"))
    assert rls.group(many_layers(2), 5, generator).shape == (5, 9)
    assert ensemble.group(many_layers(3), 5, generator).tolist() == [[m] * 9 for m in range(3)]
    assert none.group(small_models.model(1, "none"), 5, generator).tolist() == [[0, 0]]
    assert [d.separate for d in (rls, ensemble, none)] == [False, True, False]


def test_how_many_draws_there_are() -> None:
    model = small_models.model(3, "ensemble")
    assert [DEFENSES[name].samples(model) for name in ("none", "rls", "ensemble")] == [1, 10, 3]
    assert [DEFENSES[name].distinct(model) for name in ("none", "rls", "ensemble")] == [1, None, 3]


def test_wrong_requests() -> None:
    model = small_models.model(2)
    with pytest.raises(RequestError, match="at least 1, not 0"):
        draws(model, 0, seed=0, purpose="defender")
    model.card.defense = "moat"
    with pytest.raises(RequestError, match="'moat' is unknown; it is one of none, rls, ensemble"):
        defense_of(model)


def test_bank_probs_weigh_the_banks() -> None:
    model = convert("test_resnet", banks=3, bank_probs=(0.7, 0.3, 0.0), image_size=16)
    generator = seeds.generator(0, Purpose.ATTACK)
    plans = torch.stack([sample_plan(model, generator) for _ in range(1000)]).flatten()
    shares = torch.bincount(plans, minlength=3) / len(plans)
    assert shares[:2].tolist() == pytest.approx([0.7, 0.3], abs=0.02)  # 4 standard deviations
    assert shares[2] == 0
    with pytest.raises(RequestError, match="add up to 1"):
        convert("test_resnet", banks=2, bank_probs=(0.7, 0.7), image_size=16)
    with pytest.raises(RequestError, match="for `defense='rls'`"):
        convert("test_resnet", defense="ensemble", bank_probs=(0.5, 0.5), image_size=16)
