"""On a GPU: the same draws, attacks and trainings as on the CPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rlskit
from rlskit.attacks import ATTACKS, prepare
from rlskit.defenses import DEFENSES
from rlskit.models.banks import BankedModel
from rlskit.training import TrainOptions
from small_models import digits, model
from test_attacks import QUICK, net_and_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OWN = Path(__file__).with_name("random_networks.py")
FEW = ("none", "rls", "ensemble", "rse", "smoothing")
"""Defenses of each kind: one draw, plans, members, noise inside and noise on the image."""


@pytest.fixture(autouse=True)
def exact(tmp_path: Path) -> Iterator[None]:
    """Compute in whole float32, as the CPU does."""
    (tmp_path / "cache").mkdir()  # or torch warns that it keeps no kernels
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def both(defense: str, name: str = "test_resnet") -> tuple[BankedModel, BankedModel]:
    """The same untrained model on the CPU and on the GPU."""
    built = [rlskit.convert(name, defense=defense, image_size=16, num_classes=5) for _ in range(2)]
    return built[0], built[1].to("cuda")


@pytest.mark.parametrize("defense", sorted(set(DEFENSES) - {"stochastic"}))
def test_a_draw_is_the_same_on_both(defense: str) -> None:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    on_cpu, on_gpu = both(defense)
    (one,) = rlskit.draws(on_cpu, 1, seed=0, purpose="attacker")
    (other,) = rlskit.draws(on_gpu, 1, seed=0, purpose="attacker")
    expected = one(images)
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(other(images.cuda()).cpu(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("factory", ["noise", "paths", "resize"])
def test_a_stochastic_draw_is_the_same_twice(factory: str) -> None:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1)).cuda()
    state = torch.cuda.get_rng_state()
    model = both("stochastic", f"{OWN}:{factory}")[1]
    first, again = (rlskit.draws(model, 1, seed=0, purpose="attacker")[0] for _ in range(2))
    answers = first(images)
    assert torch.equal(again(images), answers)
    parts = torch.cat([first(images[:1]), first(images[1:])])
    tolerance = 1e-4 * float(answers.abs().max())  # as the defense promises
    torch.testing.assert_close(parts, answers, rtol=0, atol=tolerance)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("method", sorted(ATTACKS))
def test_an_attack_finds_the_same_on_both(method: str) -> None:
    """Searches of many steps part by rounding; that as many images are fooled is what counts."""
    attack = prepare(method, **QUICK[method])
    net, images, labels = net_and_images()
    net.eval()
    generator = torch.Generator().manual_seed(0)
    expected = net(attack(net, images, labels, generator=generator)).argmax(1) != labels
    net.cuda()
    images, labels = images.cuda(), labels.cuda()
    found = net(attack(net, images, labels, generator=generator)).argmax(1) != labels
    assert abs(int(found.sum()) - int(expected.sum())) <= 1


@pytest.mark.parametrize("defense", FEW)
def test_a_defense_is_trained_and_evaluated_by_all_protocols(defense: str) -> None:
    trained = rlskit.convert("test_resnet", defense=defense, image_size=16).to("cuda")
    rlskit.train(trained, digits(1000, "train"), epochs=4, batch_size=50, lr=0.1)
    data = digits(60)
    for protocol, count in (("transfer", 1), ("multi", 3), ("eot", 3), ("known", 1)):
        if (defense, protocol) != ("none", "eot"):
            result = rlskit.attack(
                trained, data, eps=0.1, protocol=protocol, n_attacked=count, n_samples=3
            )
            assert result.accuracy["robust"].mean < result.accuracy["clean"].mean
    result = rlskit.attack_adaptively(trained, data, eps=0.1, queries=20, steps=5, n_samples=3)
    assert result.accuracy["robust"].mean < result.accuracy["clean"].mean
    rlskit.measure_diversity(trained, data)


@pytest.mark.parametrize("defense", ["none", "rls"])
def test_the_audit_runs_there(defense: str) -> None:
    trained = model(1 + (defense == "rls"), defense).to("cuda")
    rlskit.train(trained, digits(800, "train"), epochs=6, batch_size=50, lr=0.05)
    found = rlskit.audit_model(trained, digits(24), eps=0.1, steps=10, step_size=0.025, queries=20)
    assert len(found.checks) == 13


def test_adversarial_training_in_bfloat16() -> None:
    trained = model(2).to("cuda")
    options = TrainOptions(
        epochs=2, batch_size=50, lr=0.05, amp=True, adversarial="pgd", adversarial_eps=0.05,
        adversarial_steps=2,
    )  # fmt: skip
    result = rlskit.train(trained, digits(200, "train"), options=options)
    assert result.epochs[-1].loss < result.epochs[0].loss
