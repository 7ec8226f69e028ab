"""A training that was interrupted goes on, and ends with the very bits of one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import small_models
from full_disk import FullDisk
from rlskit import seeds
from rlskit.data import batches
from rlskit.defenses import DEFENSES
from rlskit.errors import RequestError, RunError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.models.streams import put_states, sources_of, states_of
from rlskit.runtime.interruptions import Interruptions
from rlskit.seeds import Purpose
from rlskit.storage.locks import only_writer_of
from rlskit.training import TrainingResult, train, unfinished_of
from rlskit.training.unfinished import SaveEvery

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 20,
    "lr": 0.1,
    "bn_batches": 2,
    "holdout": 0.2,
}
"""Two steps an epoch."""

MIDDLE, AFTER = ("epoch 2/2", 2), ("re-estimating BatchNorm", 2)
"""Where a training is stopped: within an epoch, and after the steps of one."""


class Noisy(nn.Module):
    """A network that draws from generators of its own, of all kinds, beside torch's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = small_models.network(seed, dropout=0.5)
        self.own, self.legacy = np.random.default_rng(1), np.random.RandomState(2)
        self.mersenne = np.random.Generator(np.random.MT19937(3))

    def forward(self, images: Tensor) -> Tensor:
        drawn = self.own.normal() + self.legacy.normal() + self.mersenne.normal()
        logits: Tensor = self.body(images + 0.1 * (drawn + random.gauss(0, 1)))
        return logits


class Warming(nn.Module):
    """Goes by what no state dict holds: it counts its passes, and averages what it sees."""

    average: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body, self.passes = small_models.network(seed), 0
        self.register_buffer("average", torch.ones(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        if not self.training:
            return logits
        self.passes += 1
        self.average.mul_(0.5).add_(logits.detach().abs().mean(), alpha=0.5)
        return logits * (self.passes / 10) / float(self.average)


def dropped(seed: int) -> nn.Module:
    return small_models.network(seed, dropout=0.5)


def build(defense: str = "rls", network: Callable[[int], nn.Module] = dropped) -> BankedModel:
    banks = 2 if defense in ("rls", "ensemble", "adp") else 1
    model = small_models.model(banks, defense, layers=2 if network is dropped else 1, build=network)
    model.card.settings = dict(DEFENSES[defense].settings)
    return model


class Stopped(BaseException):
    """Stands for a kill."""


def stopping(at: str, step: int) -> Any:
    def progress(name: str, done: int, total: int, **facts: float) -> None:
        if (name, done) == (at, step):
            raise Stopped

    return progress


def go(model: BankedModel, out: Path, **given: Any) -> TrainingResult:
    return train(model, small_models.digits(50, "train"), out=out, **OPTIONS | given)


def stopped(
    model: BankedModel, out: Path, at: str = "epoch 2/3", step: int = 2, **given: Any
) -> None:
    with pytest.raises(Stopped):
        go(model, out, save_every=1, progress=stopping(at, step), **given)


def loaded(file: Path) -> BankedModel:
    """The model in a file, as `checkpoint.load` would give it."""
    model = build()
    with torch.no_grad():
        for name, tensor in load_file(file).items():
            checkpoint.stored_tensors(model)[name].copy_(tensor)
    about = checkpoint.inspect(file)
    model.card.training, model.card.class_names = about["training"], tuple(about["class_names"])
    model.path = str(file)
    return model


def outcome(out: Path) -> list[Any]:
    """All that a training leaves: both files' bytes, and the log but for its times."""
    lines = out.with_name(f"{out.stem}.train.jsonl").read_text().splitlines()
    times = ("seconds", "images_per_second")
    weights = [out.read_bytes(), out.with_name(f"{out.stem}.best.safetensors").read_bytes()]
    return [*weights, [{**json.loads(line), **dict.fromkeys(times)} for line in lines]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What `go(build())` leaves when nothing interrupts it."""
    out = tmp_path_factory.mktemp("whole") / "x.safetensors"
    go(build(), out)
    assert not unfinished_of(out).exists()
    return outcome(out)


@pytest.mark.parametrize(
    ("defense", "place", "options"),
    [
        ("rls", MIDDLE, {"augment": "crop-flip", "schedule": "one-cycle", "num_workers": 1}),
        ("rls", MIDDLE, {"adversarial": "pgd", "adversarial_steps": 2, "schedule": "cosine"}),
        ("rls", AFTER, {"amp": True, "loss": "mse", "individual": 0.3, "momentum": 0.0}),
        ("ensemble", MIDDLE, {"schedule": "step", "step_epochs": 1}),
        ("adp", MIDDLE, {"holdout": 0.0}),
        ("rse", AFTER, {"adversarial": "pgd", "adversarial_steps": 2}),
        ("weight-noise", MIDDLE, {}),
        ("none", MIDDLE, {"network": Noisy}),
        ("rls", MIDDLE, {"network": Warming}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value[0]),
)
def test_every_training_goes_on_bit_for_bit(
    tmp_path: Path, defense: str, place: tuple[str, int], options: dict[str, Any]
) -> None:
    network = options.get("network", dropped)
    given = {"epochs": 2, **{k: v for k, v in options.items() if k != "network"}}
    out = tmp_path / "x.safetensors"
    stopped(build(defense, network), out, *place, **given)
    torch.rand(3), random.random()  # the state outside is none of its own
    go(build(defense, network), out, **given)
    go(build(defense, network), tmp_path / "whole.safetensors", **given)
    assert outcome(out) == outcome(tmp_path / "whole.safetensors")


def test_in_place_it_trains_no_more_epochs_than_asked_for(tmp_path: Path, whole: list[Any]) -> None:
    out, said = tmp_path / "x.safetensors", list[str]()
    checkpoint.save(build(), out)
    stopped(loaded(out), out, "epoch 3/3", 2)
    assert checkpoint.inspect(out)["training"][-1]["epochs"] == 2
    result = go(loaded(out), out, note=said.append)
    assert outcome(out) == whole
    assert [one.epoch for one in result.epochs] == [1, 2, 3]
    assert result.steps == 6
    assert said[0].startswith("going on in epoch 3 of 3, after step 1 of 2;")
    go(loaded(out), out, note=said.append)
    assert said[1:] == ["the model was trained for 3 epochs already; this trains it further"]
    assert [one["epochs"] for one in checkpoint.inspect(out)["training"]] == [3, 3]


def test_force_goes_on_with_its_own_and_replaces_others(tmp_path: Path, whole: list[Any]) -> None:
    out, said = tmp_path / "x.safetensors", list[str]()
    out.write_text("a thesis")
    with pytest.raises(RequestError, match="exists already; `force`"):
        go(build(), out)
    stopped(build(), out, force=True)
    stopped(build(), out, "epoch 3/3", 1, force=True, note=said.append)
    go(build(), out, force=True, note=said.append)
    assert [line.partition(";")[0][-17:] for line in said] == [
        "after step 1 of 2",
        "after step 2 of 2",
    ]
    assert outcome(out) == whole
    with pytest.raises(RequestError, match="exists already; `force`"):
        go(build(), out)
    stopped(build(), out, force=True, lr=0.2)
    go(build(), out, force=True, note=said.append)
    assert said[2].endswith("which was called with `lr=0.2`; starting afresh")
    assert outcome(out) == whole


def test_another_request_is_refused_and_named(
    tmp_path: Path, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = (
        tmp_path / "x.safetensors",
        small_models.model(2, build=lambda seed: dropped(seed + 1)),
    )
    stopped(build(), out, "epoch 3/3", 1)
    before = {file: file.read_bytes() for file in tmp_path.glob("x.*")}
    assert len(before) == 4

    def refused(said: str, model: BankedModel | None = None, **given: Any) -> None:
        with pytest.raises(RequestError, match=said) as caught:
            go(model or build(), out, **given)
        assert caught.value.exit_code == 2
        assert {file: file.read_bytes() for file in tmp_path.glob("x.*")} == before

    refused("which was called with `lr=0.1` and no `amp`; `force` starts", lr=0.2, amp=True)
    refused("which was called with other starting weights; `force`", other)
    with pytest.raises(RequestError, match="which was called with other data; `force`"):
        train(build(), small_models.digits(60, "train"), out=out, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr("rlskit.evaluation.subject.version", lambda name: f"0 of {name}")
        refused(rf"which was called with .*torch {torch.__version__}".replace("+", r"\+"))
    for file in (out, out.with_name("x.best.safetensors"), out.with_name("x.train.jsonl")):
        file.write_text("a thesis")
        with pytest.raises(RequestError, match=f"{file.name} "):
            go(build(), out)
        assert file.read_text() == "a thesis"
        file.write_bytes(before[file])
    out.with_name("x.best.safetensors").unlink()
    with pytest.raises(RequestError, match=r"x\.best\.safetensors is not what"):
        go(build(), out)
    out.with_name("x.best.safetensors").write_bytes(before[out.with_name("x.best.safetensors")])
    go(build(), out, num_workers=1)  # which changes nothing
    assert outcome(out)[2] == whole[2]


def test_what_is_no_state_is_refused_and_replaced_by_force(
    tmp_path: Path, whole: list[Any]
) -> None:
    out = tmp_path / "x.safetensors"
    stopped(build(), out)
    file = unfinished_of(out)
    state = file.read_bytes()
    for bad in (b"", b"a diary", state[:-1], state.replace(b"correct", b"korrekt")):
        file.write_bytes(bad)
        with pytest.raises(RequestError, match=f"{file.name} is .*; `force` starts afresh"):
            go(build(), out)
        assert file.read_bytes() == bad
    go(build(), out, force=True)
    assert outcome(out) == whole


def test_whatever_cannot_be_written_leaves_all_files_whole(
    tmp_path: Path, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at ever later moments; what was written before is gone on with."""
    out, disk, failures = tmp_path / "x.safetensors", FullDisk(monkeypatch), 0
    while True:
        disk.room = failures
        try:
            go(build(), out)
            break
        except OSError:
            failures += 1
        assert {file.name for file in tmp_path.glob(".*")} == set()  # nor a temporary file
        for file in {*tmp_path.glob("x.*safetensors")} - {unfinished_of(out)}:
            checkpoint.inspect(file)
    assert 6 < failures < 20
    assert outcome(out) == whole


def test_one_process_trains_into_a_file(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with only_writer_of(out), pytest.raises(RunError, match=f"{out} is being written by process"):
        go(build(), out)
    with only_writer_of(tmp_path / "y.safetensors"):
        go(build(), out)
    assert sorted(file.name for file in tmp_path.glob(".*")) == []
    unfinished_of(tmp_path / "z.safetensors").mkdir()
    with pytest.raises(RequestError, match="is a folder, in the place of a training's file"):
        go(build(), tmp_path / "z.safetensors")


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [(500, 500, None), ("7", 7, None), ("10min", None, 600), ("0.5min", None, 30)],
)
def test_save_every(text: str | int, steps: int | None, seconds: int | None) -> None:
    found = SaveEvery.read(text)
    assert (found.steps, found.seconds) == (steps or float("inf"), seconds or float("inf"))


@pytest.mark.parametrize("text", ["", "0", "0min", "min", "10s", "-1", "1e3", "9" * 5000])
def test_wrong_save_every(text: str) -> None:
    with pytest.raises(RequestError, match="`save_every` is a number of steps such as 500, or"):
        train(build(), save_every=text)


def test_batches_from_the_middle_are_those_of_the_whole() -> None:
    data = small_models.digits(50, "train")

    def taken(start: int, workers: int) -> list[Tensor]:
        order = seeds.generator(0, Purpose.TRAIN_ORDER, 0)
        stream = batches(data, 20, order, "crop-flip", workers, start=start)
        return [images for images, _ in stream]

    everything = taken(0, 0)
    for start in range(4):
        for workers in (0, 1):
            assert all(map(torch.equal, taken(start, workers), everything[start:]))
            assert len(taken(start, workers)) == 3 - start


def test_states_of_random_numbers_survive_json() -> None:
    network = Noisy(0)
    sources = sources_of(network)
    assert len(sources) == 6
    network(torch.zeros(1, 1, 8, 8))
    states = json.loads(json.dumps(states_of(sources)))
    wanted = network(torch.zeros(1, 1, 8, 8))
    assert not torch.equal(network(torch.zeros(1, 1, 8, 8)), wanted)
    put_states(sources, states)
    assert torch.equal(network(torch.zeros(1, 1, 8, 8)), wanted)
    for wrong in (states[:-1], [*states[:-1], {}], [*states[:-1], 3], [[-1], *states[1:]]):
        with pytest.raises(RequestError, match="kept states of random numbers"):
            put_states(sources, wrong)


def test_interruptions_wait_for_the_save_and_act_once() -> None:
    acted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: acted.append(number))
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the background
    try:
        with Interruptions() as held:
            signal.raise_signal(signal.SIGTERM)
            assert (held.came, acted) == (signal.SIGTERM, [])
            held.act()
            assert (held.came, acted) == (None, [signal.SIGTERM])
            signal.raise_signal(signal.SIGTERM)
            assert len(acted) == 1
            signal.raise_signal(signal.SIGTERM)  # a second one acts at once
            assert len(acted) == 2
        assert len(acted) == 3
        with pytest.raises(KeyboardInterrupt), Interruptions():
            signal.raise_signal(signal.SIGINT)  # which the end of the block lets through
        signal.raise_signal(signal.SIGTERM)
        assert len(acted) == 4
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


def test_interruptions_wait_as_long_as_they_have_patience() -> None:
    acted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: acted.append(number))
    try:
        with Interruptions(patience=0):
            signal.raise_signal(signal.SIGTERM)
            assert len(acted) == 1
        with Interruptions(patience=0.05):
            signal.raise_signal(signal.SIGTERM)
            assert len(acted) == 1
            started = time.monotonic()
            while len(acted) == 1 and time.monotonic() - started < 10:
                time.sleep(0.01)
            assert len(acted) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


NET = """
from torch import nn

def net(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(512, num_classes),
    )
"""

KILLER = """
import os, shutil, signal, sys, time
from pathlib import Path
from rlskit.cli import run

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background
train = ["train", "--epochs", "3", "--limit", "240", "--augment", "crop-flip", "-q"]
train += ["--batch-size", "30", "--save-every", "1"]
assert run(["convert", "net.py:net", "--image-size", "8", "--data", "digits", "-q"]) == 0
assert run([*train, "-o", "whole.safetensors"]) == 0
state = Path("rls.unfinished.safetensors")

def changes():
    try:
        return state.stat().st_mtime_ns
    except OSError:
        return 0

codes = []
for number, saves in [(signal.SIGKILL, 1), (signal.SIGKILL, 7), (signal.SIGTERM, 3),
                      (signal.SIGINT, 2), (signal.SIGKILL, 4)]:
    child = os.fork()
    if not child:
        os._exit(run(train))
    for _ in range(saves):
        before = changes()
        while changes() == before:
            time.sleep(0.0005)
    os.kill(child, number)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*codes, run(train))
"""


def test_a_command_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """In place, at five moments: one process stands for six, as loading torch takes seconds."""
    (tmp_path / "net.py").write_text(NET)
    done = subprocess.run(
        [sys.executable, "-c", KILLER], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "-9 -9 143 130 -9 0", done.stderr
    assert outcome(tmp_path / "rls.safetensors") == outcome(tmp_path / "whole.safetensors")
    assert "terminated; what was done is kept: the same command goes on" in done.stderr
    left = {file.name for file in tmp_path.iterdir()} - {"net.py", "__pycache__", "cache", "state"}
    kinds = (".best.safetensors", ".safetensors", ".train.jsonl")
    assert left == {f"{name}{kind}" for name in ("rls", "whole") for kind in kinds}
