"""Training: the losses by hand, steps against plain SGD, and what the files keep."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import small_models
from rlskit import seeds
from rlskit.data import batches
from rlskit.defenses import DEFENSES, draws
from rlskit.errors import RequestError, RunError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.seeds import Purpose
from rlskit.training import TrainOptions, group_loss, reestimate_batch_norm, separate_loss, train
from rlskit.training.epochs import Run, split
from rlskit.training.kept import Files

LOGITS = np.array([[[2.0, 0, -1], [0, 1, 0]], [[0, 0, 0], [3, -1, 1]], [[1, 2, 3], [0, 0, 5]]])
LABELS = np.array([0, 2])
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 20, "holdout": 0.0, "bn_batches": 0}


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return found


def by_hand(probabilities: np.ndarray[Any, Any], loss: str) -> float:
    if loss == "ce":
        return float(-np.log(probabilities[[0, 1], LABELS]).mean())
    return float(((probabilities - np.eye(3)[LABELS]) ** 2).sum(1).mean())


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("individual", [0.0, 0.3, 1.0])
def test_group_loss_by_hand(loss: str, individual: float) -> None:
    single = softmax(LOGITS)
    together = by_hand(single.mean(0), loss)
    alone = float(np.mean([by_hand(one, loss) for one in single]))
    found = group_loss(torch.tensor(LOGITS), torch.tensor(LABELS), loss, individual)
    assert found.item() == pytest.approx(
        (1 - individual) * together + individual * alone, rel=1e-12
    )
    total = separate_loss(torch.tensor(LOGITS), torch.tensor(LABELS), loss)
    assert total.item() == pytest.approx(3 * alone, rel=1e-12)


def test_mse_decomposes_as_in_equation_7() -> None:
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    f = softmax(LOGITS)
    diversity = ((f - f.mean(0)) ** 2).sum(-1).mean()  # equation 6, summed over classes
    group, single = (group_loss(logits, labels, "mse", w).item() for w in (0.0, 1.0))
    assert diversity > 0.01
    assert group == pytest.approx(single - diversity, rel=1e-12)


def test_loss_of_extreme_logits_is_exact() -> None:
    logits = torch.tensor([[[-500.0, 500.0]], [[-502.0, 498.0]]], requires_grad=True)
    loss = group_loss(logits, torch.tensor([0]))
    assert loss.item() == 1000
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    wanted = torch.tensor([[-0.5, 0.5], [-0.5, 0.5]])
    torch.testing.assert_close(logits.grad[:, 0], wanted, rtol=1e-4, atol=0)


def plain_sgd(network: nn.Module, normalize: nn.Module, options: TrainOptions) -> nn.Module:
    """The loop that everyone would write for one network."""
    network = copy.deepcopy(network).train()
    sgd = torch.optim.SGD(
        network.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay
    )
    for epoch in range(options.epochs):
        order = seeds.generator(options.seed, Purpose.TRAIN_ORDER, epoch)
        for images, labels in batches(small_models.digits(50, "train"), options.batch_size, order):
            sgd.zero_grad()
            F.cross_entropy(network(normalize(images)), labels).backward()  # type: ignore[no-untyped-call]
            sgd.step()
    return network


@pytest.mark.parametrize(
    ("defense", "banks"), [("rls", 1), ("none", 1), ("ensemble", 1), ("ensemble", 3)]
)
def test_a_network_trained_alone_is_trained_by_plain_sgd(defense: str, banks: int) -> None:
    model = small_models.model(banks, defense)
    options = TrainOptions(**SHORT, group_size=1, lr=0.1)
    wanted = [plain_sgd(bank, model.normalize, options) for bank in model.banks]
    train(model, small_models.digits(50, "train"), options=options)
    for bank, other in zip(model.banks, wanted, strict=True):
        for name, tensor in bank.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_group_step_by_hand() -> None:
    """Two linear models of one group: the step follows the gradient of -log of their mean."""
    model = small_models.model(
        2, layers=1, build=lambda s: small_models.network(s, batch_norm=False)
    )
    twin = copy.deepcopy(model)
    run = Run(model, TrainOptions(lr=0.5, weight_decay=0.0), small_models.digits(20), Files(None))
    run.defense = dataclasses.replace(run.defense, group=lambda *_: torch.tensor([[0], [1]]))
    images, labels = run.data.images(range(10)), run.data.labels[:10]
    run._step(images, labels, torch.Generator())
    normalized = twin.normalize(images)
    probabilities = sum(bank(normalized).softmax(-1) for bank in twin.banks) / 2
    loss = -probabilities[torch.arange(10), labels].log().mean()
    parameters = list(twin.banks.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for found, before, gradient in zip(
        model.banks.parameters(), parameters, gradients, strict=True
    ):
        torch.testing.assert_close(found, before - 0.5 * gradient, rtol=1e-5, atol=1e-6)


class Looked(nn.Module):
    """A linear layer whose columns are looked up."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.columns = nn.Embedding(64, 10, sparse=sparse)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = images.flatten(1) @ self.columns(torch.arange(64))
        return logits


def test_sparse_gradients_are_those_that_are_not() -> None:
    def trained(sparse: bool) -> list[torch.Tensor]:
        model = small_models.model(2, build=lambda _: Looked(sparse), layers=1)
        train(model, small_models.digits(50, "train"), epochs=2, batch_size=20)
        return small_models.weights(model)

    assert all(map(torch.equal, trained(False), trained(True)))


def test_idle_banks_are_moved_neither_by_momentum_nor_by_decay() -> None:
    model = small_models.model(2)
    options = TrainOptions(group_size=1, momentum=0.9, weight_decay=0.1)
    run = Run(model, options, small_models.digits(20), Files(None))
    images, labels = run.data.images(range(10)), run.data.labels[:10]

    def step(plan: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        run.defense = dataclasses.replace(run.defense, group=lambda *_: torch.tensor([plan]))
        before = small_models.weights(model)
        model.train()
        run._step(images, labels, torch.Generator())
        return before, small_models.weights(model)

    step([0, 0])
    step([1, 1])  # so that all have momentum
    before, after = step([0, 1])
    moved = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    visited = [
        name in model.partition.layers[0 if bank == 0 else 1].tensors
        for bank, tensors in enumerate(model.bank_tensors())
        for name in tensors
    ]
    assert moved == visited


@pytest.mark.parametrize("defense", ["rls", "ensemble"])
def test_same_seed_same_bits_whatever_the_global_state(defense: str) -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(torch.seed() % 1000)
        state = torch.get_rng_state()
        model = small_models.model(2, defense, build=lambda s: small_models.network(s, dropout=0.5))
        options = {**SHORT, "bn_batches": 3, "augment": "crop-flip", "seed": seed}
        train(model, small_models.digits(50, "train"), **options)
        assert torch.equal(torch.get_rng_state(), state)
        return small_models.weights(model)

    first, again, other = trained(0), trained(0), trained(1)
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True) if x.ndim > 1)


def conv_outputs(model: BankedModel, bank: int, images: torch.Tensor) -> torch.Tensor:
    convolution = list(model.banks)[bank].get_submodule("0")
    found: torch.Tensor = convolution(model.normalize(images)).detach()
    return found


@pytest.mark.parametrize(("defense", "banks"), [("rls", 1), ("rls", 3), ("ensemble", 2)])
def test_batch_norm_gets_the_statistics_of_the_data(defense: str, banks: int) -> None:
    model = small_models.model(banks, defense, build=lambda s: small_models.network(s, dropout=0.5))
    model.train()
    data = small_models.digits(40, "train")
    reestimate_batch_norm(model, data, TrainOptions(batch_size=20, bn_batches=50))
    order = seeds.generator(0, Purpose.BATCH_NORM_ORDER)
    halves = [images for images, _ in batches(data, 20, order)]
    for bank in range(banks):
        norm = list(model.banks)[bank].get_submodule("2")
        assert isinstance(norm, nn.BatchNorm2d)
        outputs = [conv_outputs(model, bank, half) for half in halves]
        mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
        var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == 2
        assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def two_norms(seed: int) -> nn.Module:
    """Two convolutions with BatchNorm, in two layers: what the second sees is the first's bank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        last = nn.Sequential(
            nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 4 * 4, 10)
        )
        return nn.Sequential(OrderedDict([("0", first), ("6", last)]))


def shifted(by: int, seed: int) -> nn.Module:
    return two_norms(seed + by)


def test_members_of_an_ensemble_get_their_own_statistics() -> None:
    """Also at granularity layer: plans that mix members are never drawn, and must not count."""
    model = small_models.model(3, "ensemble", build=two_norms)
    data = small_models.digits(40, "train")
    options = TrainOptions(batch_size=40, bn_batches=5)
    reestimate_batch_norm(model, data, options)
    together = small_models.weights(model)
    for bank in range(3):
        alone = small_models.model(1, "ensemble", build=functools.partial(shifted, bank))
        reestimate_batch_norm(alone, data, options)
        count = len(together) // 3
        mine = together[bank * count : (bank + 1) * count]
        assert all(map(torch.equal, mine, small_models.weights(alone)))


def test_statistics_are_those_among_the_neighbours_that_a_draw_has() -> None:
    """A bank that is never drawn is seen once, so that its own are of something."""
    model, alone = (small_models.model(banks, build=two_norms) for banks in (2, 1))
    model.card.bank_probs = (1.0, 0.0)
    small_models.tensor(model, 1, "0.1.bias").fill_(50.0)  # what bank 0 would see of it
    data = small_models.digits(40, "train")
    for one in (model, alone):
        reestimate_batch_norm(one, data, TrainOptions(batch_size=4, bn_batches=10))
    name = "6.1.running_mean"
    found, wanted = (small_models.tensor(one, 0, name) for one in (model, alone))
    unlikely = small_models.tensor(model, 1, name)
    far = 50 * small_models.tensor(model, 0, "6.0.weight").sum((1, 2, 3))
    assert ((found - wanted).abs() < 0.1 * far.abs()).all()
    assert unlikely.abs().min() > 0
    assert int(small_models.tensor(model, 1, "6.1.num_batches_tracked")) == 1


def learning_rates(**fields: Any) -> tuple[list[float], list[float]]:
    """The learning rate and momentum of every gradient step of a training on 40 images."""
    model = small_models.model(1)
    options = TrainOptions(**{**SHORT, **fields})
    run = Run(model, options, small_models.digits(40), Files(None))
    rates, momenta = [], []
    for _ in range(options.epochs * run.steps_per_epoch):
        rates.append(run.optimizer.param_groups[0]["lr"])
        momenta.append(run.optimizer.param_groups[0]["momentum"])
        run._step(run.data.images(range(4)), run.data.labels[:4], torch.Generator())
    return rates, momenta


def test_step_schedule() -> None:
    rates, momenta = learning_rates(epochs=5, step_epochs=2, lr=0.2)
    assert rates == pytest.approx([0.2] * 4 + [0.02] * 4 + [0.002] * 2)
    assert set(momenta) == {0.9}


def test_cosine_schedule() -> None:
    rates, _ = learning_rates(epochs=3, schedule="cosine", lr=0.2)
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 6)) for t in range(6)])


def test_one_cycle_schedule_leaves_momentum_alone() -> None:
    rates, momenta = learning_rates(epochs=10, schedule="one-cycle", lr=0.2, momentum=0.5)
    assert rates[0] == pytest.approx(0.2 / 25)
    assert max(rates) == pytest.approx(0.2, rel=0.05)
    assert rates[-1] < 0.01
    assert set(momenta) == {0.5}
    learning_rates(epochs=1, batch_size=40, schedule="one-cycle")  # one step is enough


def test_the_log_of_an_ensemble_holds_the_mean_loss() -> None:
    """Before any step all members are near log 10; their sum would be near 3 log 10."""
    model = small_models.model(3, "ensemble")
    result = train(model, small_models.digits(20), **SHORT, lr=1e-9)
    assert result.epochs[0].loss == pytest.approx(math.log(10), rel=0.1)


def break_weights(model: BankedModel, at: str, step: int) -> Any:
    def progress(name: str, done: int, total: int, **facts: float) -> None:
        if name == at and done == step:
            with torch.no_grad():
                next(model.banks[0].parameters()).fill_(math.nan)

    return progress


@pytest.mark.parametrize(
    ("defense", "adversarial"),
    [*((name, "none") for name in DEFENSES), ("rls", "pgd"), ("ensemble", "pgd")],
)
def test_a_step_asks_an_accelerator_for_nothing(
    defense: str, adversarial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which has no numbers: whoever asks for one there waits on a GPU."""
    banks = 2 if defense in ("rls", "ensemble", "adp", "gal", "crossmax") else 1
    model = small_models.model(banks, defense, layers=2 if defense == "rls" else 1)
    model.card.settings = dict(DEFENSES[defense].settings)
    options = TrainOptions(group_size=2, adversarial=adversarial, adversarial_steps=2)
    data = small_models.digits(20, "train")
    run = Run(model, options, data, Files(None))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    run.trained[:] = run.optimizer.param_groups[0]["params"][:] = model.to("meta").parameters()
    facts = run._step(data.images(range(20)).to("meta"), data.labels.to("meta"), torch.Generator())
    assert facts.is_meta


@pytest.mark.parametrize(
    ("step", "reason"), [(1, "the loss is nan in epoch 2, step 2"), (2, "is NaN or infinite")]
)
def test_files_keep_the_last_good_epoch(tmp_path: Path, step: int, reason: str) -> None:
    """Also where the last step of an epoch breaks the weights, and no loss shows it."""
    good, out = tmp_path / "good.safetensors", tmp_path / "rls.safetensors"
    train(small_models.model(1), small_models.digits(40), **SHORT | {"epochs": 1}, out=good)
    model = small_models.model(1)
    with pytest.raises(RunError, match=reason) as caught:
        train(
            model, small_models.digits(40), **SHORT, out=out,
            progress=break_weights(model, "epoch 2/2", step),
        )  # fmt: skip
    assert caught.value.exit_code == 3
    assert f"{out} keeps epoch 1" in str(caught.value)
    found, wanted = load_file(out), load_file(good)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert checkpoint.inspect(out)["training"][-1]["epochs"] == 1
    assert len((tmp_path / "rls.train.jsonl").read_text().splitlines()) == 1
    assert not any(module.training for module in model.modules())


def test_failure_in_the_first_epoch_says_what_stands(tmp_path: Path) -> None:
    out = tmp_path / "rls.safetensors"
    for expected in ("was not written", "is as it was"):
        model = small_models.model(1)
        broken = break_weights(model, "epoch 1/2", 1)
        with pytest.raises(RunError, match=f"{out} {expected}"):
            train(model, small_models.digits(40), **SHORT, out=out, force=True, progress=broken)
        assert out.exists() == (expected == "is as it was")
        out.write_bytes(b"an older checkpoint")
    assert out.read_bytes() == b"an older checkpoint"
    with pytest.raises(RunError, match="the model in memory is of no use"):
        train(model, small_models.digits(40), **SHORT)


def test_best_last_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.5, 0.9, 0.9, 0.2]
    monkeypatch.setattr(Run, "_held_out_accuracy", lambda self, epoch: scores[epoch])
    model = small_models.model(2)
    out = tmp_path / "my.model.safetensors"
    result = train(model, small_models.digits(40), **SHORT | {"epochs": 4}, out=out)
    assert (result.last, result.best) == (out, tmp_path / "my.model.best.safetensors")
    assert result.best_epoch == 3
    assert result.steps == 8
    assert result.best is not None
    assert checkpoint.inspect(result.best)["training"][-1]["epochs"] == 3
    record = checkpoint.inspect(out)["training"][-1]
    assert (record["epochs"], record["steps"], record["images"]) == (4, 8, 40)
    assert record["data_sha256"] == small_models.digits(40).sha256
    assert result.log is not None
    lines = [json.loads(line) for line in result.log.read_text().splitlines()]
    assert lines == [dataclasses.asdict(epoch) for epoch in result.epochs]
    assert model.path == str(out)
    assert load_file(out).keys() == checkpoint.stored_tensors(model).keys()
    again = train(model, small_models.digits(40), **SHORT | {"epochs": 1})
    assert len(model.card.training) == 2
    assert model.path is None  # the file holds other weights now
    assert again.last is again.best is again.log is None


def test_held_out_accuracy_is_that_of_the_draws() -> None:
    model, data = small_models.model(2), small_models.digits(100, "train")
    options = TrainOptions(epochs=3, holdout=0.3, batch_size=10, lr=0.2, seed=5)
    result = train(model, data, options=options)
    kept, held = split(data, options)
    assert held is not None
    assert (len(kept), len(held)) == (70, 30)
    images = held.images(range(30))
    members = draws(model, 10, seed=5, purpose="holdout")
    answers = torch.stack([member(images).softmax(-1) for member in members]).mean(0).argmax(-1)
    found = result.epochs[-1].holdout_accuracy
    assert found == int((answers == held.labels).sum()) / 30
    assert 0.2 < found < 1
    parted = torch.cat([kept.images(range(70)), images]).flatten(1).tolist()
    assert sorted(parted) == sorted(data.images(range(100)).flatten(1).tolist())


def test_group_optimisation_learns_digits() -> None:
    model = small_models.model(2)
    train(
        model, small_models.digits(1000, "train"),
        epochs=12, lr=0.1, batch_size=50, schedule="cosine", bn_batches=5,
    )  # fmt: skip
    test = small_models.digits(360)
    members = draws(model, 10, seed=1, purpose="defender")
    images = test.images(range(len(test)))
    answers = torch.stack([member(images).softmax(-1) for member in members]).mean(0).argmax(-1)
    assert (answers == test.labels).double().mean() > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1, not 0"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"group_size": 0}, "`group_size`"),
        ({"step_epochs": 0}, "`step_epochs`"),
        ({"lr": 0.0}, "`lr` must be a positive"),
        ({"lr": math.nan}, "`lr` must be a positive"),
        ({"momentum": -0.1}, "`momentum`"),
        ({"momentum": math.nan}, "`momentum`"),
        ({"momentum": 1.0}, r"`momentum` is a share in \[0, 1\), not 1.0"),
        ({"weight_decay": math.inf}, "`weight_decay`"),
        ({"individual": 1.5}, "`individual` is a weight in"),
        ({"individual": math.nan}, "`individual` is a weight in"),
        ({"holdout": 1.0}, "`holdout` is a share"),
        ({"bn_batches": -1}, "`bn_batches`"),
        ({"num_workers": -1}, "`num_workers`"),
        ({"loss": "hinge"}, "`loss` 'hinge' is unknown; it is one of ce, mse"),
        ({"schedule": "exp"}, "`schedule` 'exp' is unknown"),
        ({"augment": "mixup"}, "`augment` 'mixup' is unknown"),
    ],
)
def test_wrong_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TrainOptions(**fields)


def test_fields_go_before_those_of_options() -> None:
    result = train(small_models.model(1), small_models.digits(20), options=TrainOptions(), epochs=1)
    assert len(result.epochs) == 1


def test_wrong_requests(tmp_path: Path) -> None:
    model, data = small_models.model(1), small_models.digits(20)
    with pytest.raises(RequestError, match="there is no folder"):
        train(model, data, out=tmp_path / "missing" / "x.safetensors")
    with pytest.raises(RequestError, match="is a folder"):
        train(model, data, out=tmp_path)
    with pytest.raises(RequestError, match="one image is too few"):
        train(model, data.subset([0]))


def test_only_the_model_itself_is_trained_over(tmp_path: Path) -> None:
    own, other = tmp_path / "own.safetensors", tmp_path / "thesis.txt"
    checkpoint.save(small_models.model(1), own)
    other.write_text("two hundred pages")
    once = SHORT | {"epochs": 1}
    options: dict[str, Any] = {"data": small_models.digits(40), **once}
    with pytest.raises(RequestError, match=r"thesis.txt exists already; `force`"):
        train(small_models.model(1), out=other, **options)
    with pytest.raises(RequestError, match=r"own.safetensors exists already"):
        train(small_models.model(1), out=own, **options)  # of another model
    assert other.read_text() == "two hundred pages"

    model = small_models.model(1)
    model.path = str(own)
    log = tmp_path / "own.train.jsonl"
    log.write_text("a diary\n")
    with pytest.raises(RequestError, match=r"own.train.jsonl is no training's"):
        train(model, out=own, **options)
    log.unlink()
    best = tmp_path / "own.best.safetensors"
    checkpoint.save(small_models.model(1), best)
    with pytest.raises(RequestError, match=r"own.best.safetensors is no training's"):
        train(model, out=own, **options)
    train(model, out=own, force=True, **options)
    train(model, out=own, **options)  # both are a training's now
    link = tmp_path / "link.safetensors"
    link.symlink_to(own)
    train(model, out=link, **options)
    train(small_models.model(1), out=other, force=True, **options)
    assert b"rlskit" in other.read_bytes()
