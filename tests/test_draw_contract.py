"""What every defense's draws have in common: nothing random is left in them, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlskit.conversion import convert
from rlskit.defenses import DEFENSES, draws
from rlskit.defenses.answers import finite_logits
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.threat.view import attackers_view

OWN = Path(__file__).with_name("random_networks.py")

CASES = [(name, "test_resnet") for name in sorted(DEFENSES) if name != "stochastic"]
CASES += [("stochastic", f"{OWN}:{factory}") for factory in ("noise", "paths", "resize")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0] + case[1][-7:])
def model(request: pytest.FixtureRequest) -> BankedModel:
    defense, network = request.param
    return convert(network, defense=defense, image_size=16, num_classes=5)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def draw_of(model: BankedModel, **key: int) -> nn.Module:
    (draw,) = draws(model, 1, **{"seed": 0, "purpose": "attacker", **key})  # type: ignore[arg-type]
    return draw


def test_a_draw_answers_alike_in_every_mode(model: BankedModel, images: Tensor) -> None:
    draw = draw_of(model)
    first = draw(images)
    torch.manual_seed(7)
    assert torch.equal(draw(images), first)
    assert torch.equal(draw.train()(images), first)
    assert torch.equal(draw.eval()(images), first)
    assert not any(module.training for module in draw.modules())


def test_a_draw_uses_no_global_randomness(model: BankedModel, images: Tensor) -> None:
    state = torch.get_rng_state()
    draw_of(model)(images)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_does_not_hang_on_the_default_type(model: BankedModel, images: Tensor) -> None:
    if model.card.defense == "stochastic":
        return  # the network's own numbers are of whatever type it asks for
    expected = draw_of(model)(images)
    torch.set_default_dtype(torch.float64)
    try:
        answer = draw_of(model)(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(answer, expected, rtol=0, atol=1e-5)


def test_the_same_key_is_the_same_draw(model: BankedModel, images: Tensor) -> None:
    assert torch.equal(draw_of(model, image=3)(images), draw_of(model, image=3)(images))


@pytest.mark.parametrize("key", ["seed", "repeat", "first", "image"])
def test_another_key_is_another_draw(model: BankedModel, images: Tensor, key: str) -> None:
    answers = [draw_of(model, **{key: value})(images) for value in range(6)]
    differ = any(not torch.allclose(answer, answers[0], atol=1e-4) for answer in answers)
    assert differ == (DEFENSES[model.card.defense].distinct(model) != 1)


def test_an_image_is_answered_alike_in_any_batch(model: BankedModel, images: Tensor) -> None:
    draw = draw_of(model)
    together = draw(images)
    parts = torch.cat([draw(images[:1]), draw(images[1:])])
    torch.testing.assert_close(parts, together, rtol=0, atol=1e-5)
    twice = draw(images[:1].expand(4, -1, -1, -1))
    torch.testing.assert_close(twice, twice[:1].expand(4, -1), rtol=0, atol=1e-5)


def test_a_checkpoint_keeps_the_draws(model: BankedModel, images: Tensor, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path / "x.safetensors")
    loaded = checkpoint.load(tmp_path / "x.safetensors")
    assert loaded.card == model.card
    assert torch.equal(draw_of(loaded)(images), draw_of(model)(images))


def test_a_folded_draw_is_the_same_draw(model: BankedModel, images: Tensor) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)  # a BatchNorm that scales
    view = attackers_view(model, "transfer", 1, seed=0, repeat=0)
    plain = draw_of(model)(images)
    torch.testing.assert_close(view(images), plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


def test_gradients_reach_the_images(model: BankedModel, images: Tensor) -> None:
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(draw_of(model)(images).square().sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_draws_answer_together_as_they_do_alone(model: BankedModel, images: Tensor) -> None:
    members = draws(model, 4, seed=0, purpose="defender")
    with torch.no_grad():
        alone = torch.stack([member(images) for member in members])
        assert torch.equal(finite_logits(members, images), alone)
