"""Adversarial training: the inner attack on models with a known answer, and what a step sees."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.training import TrainOptions, train
from rlskit.training.adversarial_training import pgd_images
from rlskit.training.epochs import Run
from rlskit.training.kept import Files

EPS = 0.1
OPTIONS = TrainOptions(
    adversarial="pgd", adversarial_eps=EPS, adversarial_steps=5, adversarial_step_size=0.05
)
LABELS = torch.tensor([0, 1, 2, 3])


def linear(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def two_classes(seed: int) -> nn.Module:
    """Logits (w x, -w x): the loss of label 0 falls along sign(w), wherever the image is."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    row = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    network[1].weight.data = torch.stack([row, -row])
    return network


def images_of(low: float = 0.3, high: float = 0.7) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(4, 1, 8, 8, generator=rng)


def attacked(model: BankedModel, images: Tensor, labels: Tensor, plans: list[list[int]]) -> Tensor:
    return pgd_images(
        model, images, labels, group=lambda: torch.tensor(plans), options=OPTIONS,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def test_pgd_finds_the_corner_of_the_ball() -> None:
    """On two classes all steps go one way: 5 x 0.05 from anywhere in the ball reach its corner."""
    model = small_models.model(1, "none", layers=1, build=two_classes)
    images, labels = images_of(), torch.tensor([0, 1, 0, 1])
    found = attacked(model, images, labels, [[0]])
    toward = model.banks[0][1].weight[0].sign().view(1, 1, 8, 8)  # type: ignore[index]
    signs = torch.where(labels == 0, -1.0, 1.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, images + EPS * signs * toward)


def test_pgd_keeps_to_ball_and_box_and_raises_the_loss() -> None:
    model = small_models.model(2, "rls", layers=1, build=linear)
    images = images_of(0.0, 1.0)
    found = attacked(model, images, LABELS, [[0], [1]])
    assert (found - images).abs().max() <= EPS + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())

    def loss(inputs: Tensor) -> Tensor:
        both = torch.stack([model(inputs, torch.tensor([bank])) for bank in (0, 1)])
        return -both.softmax(-1).mean(0)[torch.arange(4), LABELS].log()

    assert (loss(found) > loss(images)).all()


def test_the_inner_attacker_sees_fresh_draws_at_every_step() -> None:
    model = small_models.model(2, "rls")
    run = Run(model, OPTIONS, small_models.digits(20), Files(None))
    seen: list[list[list[int]]] = []
    real = run.defense.group

    class Spy:
        separate, penalty = False, None

        def group(self, *arguments: Any) -> Tensor:
            found = real(*arguments)
            seen.append(found.tolist())
            return found

    run.defense = Spy()  # type: ignore[assignment]
    run._step(run.data.images(range(10)), run.data.labels[:10], torch.Generator().manual_seed(0))
    assert len(seen) == 1 + OPTIONS.adversarial_steps
    assert all(len(group) == OPTIONS.group_size for group in seen)
    assert len({str(group) for group in seen}) > 3


def test_a_step_is_taken_on_what_the_attack_found() -> None:
    model = small_models.model(1, "none", layers=1, build=linear)
    twin = copy.deepcopy(model)
    data = small_models.digits(20)
    run = Run(
        model, TrainOptions(**{**vars(OPTIONS), "lr": 0.5, "weight_decay": 0.0}), data, Files(None)
    )
    images, labels = run.data.images(range(10)), run.data.labels[:10]
    run._step(images, labels, torch.Generator().manual_seed(3))
    shown = pgd_images(
        twin, images, labels, group=lambda: torch.zeros(1, 1, dtype=torch.long), options=OPTIONS,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    logits = twin.banks[0](twin.normalize(shown))
    gradients = torch.autograd.grad(
        nn.functional.cross_entropy(logits, labels), list(twin.banks[0].parameters())
    )
    for weight, old, gradient in zip(
        model.banks[0].parameters(), twin.banks[0].parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(weight, old - 0.5 * gradient)
    assert model.training


def test_each_member_of_an_ensemble_has_its_own_attacker() -> None:
    model = small_models.model(3, "ensemble", layers=1, build=two_classes)
    run = Run(model, OPTIONS, small_models.digits(20), Files(None))
    images, labels = images_of(), torch.tensor([0, 1, 0, 1])
    plans = torch.arange(3)[:, None]
    shown = run._shown(plans, images, labels, torch.Generator().manual_seed(0))
    for bank, found in enumerate(shown):
        torch.testing.assert_close(found, attacked(model, images, labels, [[bank]]))


def test_noise_is_on_in_the_inner_attack() -> None:
    model = small_models.model(1, "rse", layers=1)
    model.card.settings = {"init_sigma": 0.2, "inner_sigma": 0.1}
    attack = partial(attacked, model, images_of(), LABELS, [[0]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, other = attack(), attack()
    assert not torch.equal(one, other)


def test_it_buys_robustness_on_digits() -> None:
    """Two trainings that differ in nothing else; held-out accuracy is that under attack."""
    data = small_models.digits(600, "train")
    options = TrainOptions(
        epochs=12, batch_size=50, lr=0.05, schedule="cosine", holdout=0.2, bn_batches=5,
        adversarial_eps=0.15, adversarial_steps=4, adversarial_step_size=0.05,
    )  # fmt: skip
    plain, hardened = (small_models.model(2, "rls") for _ in range(2))
    train(plain, data, options=options)
    record = train(hardened, data, options=options, adversarial="pgd").epochs[-1]
    test = small_models.digits(200)
    images, labels = test.images(range(200)), test.labels
    accuracy = {}
    for name, model in (("plain", plain), ("hardened", hardened)):
        plans = torch.tensor([[0, 0], [1, 1], [0, 1]])
        found = pgd_images(
            model, images, labels, group=partial(torch.clone, plans), options=options,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        mean = torch.stack([model(found, plan).softmax(-1) for plan in plans]).mean(0)
        accuracy[name] = (mean.argmax(-1) == labels).double().mean().item()
    assert accuracy["hardened"] > accuracy["plain"] + 0.15
    assert record.holdout_accuracy == pytest.approx(accuracy["hardened"], abs=0.12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adversarial": "fgsm"}, "'fgsm' is unknown; it is one of none, pgd"),
        ({"adversarial_eps": "8"}, "`adversarial_eps` 8 is more than the .* did you mean 8/255"),
        ({"adversarial_step_size": 0.0}, "`adversarial_step_size` must be above 0"),
        ({"adversarial_steps": 0}, "`adversarial_steps` must be at least 1"),
    ],
)
def test_wrong_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TrainOptions(**fields)


def test_a_budget_may_be_a_text() -> None:
    options = TrainOptions(adversarial_eps="4/255", adversarial_step_size="0.01")
    assert (options.adversarial_eps, options.adversarial_step_size) == (4 / 255, 0.01)
    assert TrainOptions() == TrainOptions(adversarial_eps=8 / 255, adversarial_step_size=2 / 255)
    assert dataclasses.replace(options, epochs=1).adversarial_eps == 4 / 255
