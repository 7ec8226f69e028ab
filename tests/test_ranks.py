"""Several processes train one model: as one process would, and they end together."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import small_models
from rlskit import seeds
from rlskit.cli.recipe import check
from rlskit.data import batches
from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.models import checkpoint
from rlskit.runtime import together
from rlskit.runtime.sharding import Shard
from rlskit.runtime.together import Ranks
from rlskit.seeds import Purpose
from rlskit.training.ranks import Share, add_gradients


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where two processes trained, and what was found of it."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_gradients_are_those_of_ddp_and_of_one_process(two: tuple[Path, dict[str, Any]]) -> None:
    assert two[1]["gradients"] == [0, 0]  # what is compared: `two_ranks.gradients`


def test_the_command_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"torchrun --nproc-per-node 2 -m rlskit (train .*)", page)
    check(shlex.split(arguments))


def test_two_train_as_one_and_write_once(two: tuple[Path, dict[str, Any]]) -> None:
    """Augmented, under PGD, with a batch too small for two, and layers that a step skips."""
    folder, found = two
    assert found["shared"] == [0, 0]
    assert found["files"] == ["two.best.safetensors", "two.safetensors", "two.train.jsonl"]
    one, other = load_file(folder / "one.safetensors"), load_file(folder / "two.safetensors")
    start = checkpoint.stored_tensors(small_models.model(2, build=plain))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=0, atol=1e-6), name
    moved = [float((one[name] - begun.detach()).abs().max()) for name, begun in start.items()]
    assert min(moved) > 0.01
    logs = [(folder / f"{name}.train.jsonl").read_text().splitlines() for name in ("one", "two")]
    for alone, shared in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert (alone["processes"], shared["processes"]) == (1, 2)
        assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-6)
        for name in ("accuracy", "holdout_accuracy", "steps"):
            assert alone[name] == shared[name]
    assert checkpoint.inspect(folder / "two.safetensors")["training"][-1]["processes"] == 2


def plain(seed: int) -> nn.Module:
    return small_models.network(seed, batch_norm=False)


def test_all_end_as_the_first_that_ends(two: tuple[Path, dict[str, Any]]) -> None:
    _, found = two
    codes = {"whole": [0, 0], "broken": [3, 3], "nan": [3, 3], "SIGTERM": [143, 143]}
    assert {name: found[name][0] for name in codes} == codes
    assert found["SIGKILL"][0] == [3, -9]
    sentences = {
        "whole": "14 steps on digits",
        "broken": "ValueError: broken in the second process",
        "nan": "the loss is nan in epoch 1, step 7; nan.safetensors was not written",
        "SIGTERM": "terminated; what was done is kept: the same command goes on",
        "SIGKILL": "another of the processes was killed",
    }
    for name, sentence in sentences.items():
        said = found[name][1].splitlines()
        assert len(said) == 1, said  # of the first one only
        assert sentence in said[0]


def test_two_go_on_bit_for_bit_and_one_does_not(two: tuple[Path, dict[str, Any]]) -> None:
    """With dropout and BatchNorm, after SIGKILL and SIGTERM of the second process."""
    folder, found = two
    code, said = found["alone"]
    assert code == 2
    assert "an interrupted training, which was called with 2 processes" in said
    assert found["went on"][0] == [0, 0]
    for kind in (".safetensors", ".best.safetensors"):
        stopped, whole = folder / f"stopped{kind}", folder / f"whole{kind}"
        assert stopped.read_bytes() == whole.read_bytes()
    assert not list(folder.glob("stopped.unfinished*"))


@pytest.mark.parametrize(("size", "count"), [(7, 3), (128, 3), (5, 3), (6, 3), (1, 1), (9, 1)])
def test_shares_make_up_a_batch(size: int, count: int) -> None:
    shares = [Share.of(size, Shard(index, count)) for index in range(count)]
    values = torch.arange(1.0, size + 1)
    mean = sum(share.weight * values[share.mine].mean() for share in shares)
    assert float(mean) == pytest.approx((size + 1) / 2)
    assert sum(share.copy * len(values[share.mine]) for share in shares) == pytest.approx(size)
    fewest = min(len(values[share.mine]) for share in shares)
    assert fewest == (size if size < 2 * count else size // count)
    drawn = [share.drawn((2,), torch.Generator().manual_seed(1)) for share in shares]
    whole = torch.rand(size, 2, generator=torch.Generator().manual_seed(1))
    parts = drawn if size >= 2 * count else drawn[:1]
    assert torch.equal(torch.cat(parts), whole)


def test_parts_of_batches_are_those_of_the_whole() -> None:
    data = small_models.digits(50, "train")

    def taken(index: int, count: int) -> list[torch.Tensor]:
        order = seeds.generator(0, Purpose.TRAIN_ORDER, 0)
        stream = batches(data, 20, order, "crop-flip", start=1, shard=Shard(index, count))
        return [torch.cat([images.flatten(1), labels[:, None]], 1) for images, labels in stream]

    for whole, *parts in zip(taken(0, 1), *(taken(index, 3) for index in range(3)), strict=True):
        assert torch.equal(torch.cat(parts), whole)


class Other(Ranks):
    """Stands for two processes, of which the other found as much and used parameter 1 alone."""

    def most(self, values: Any) -> list[int]:
        return [max(*pair) for pair in zip(values, (0, 1, 0), strict=True)]

    def add(self, tensors: Any) -> None:
        together._in_one(tensors, lambda flat: flat.mul_(2))


def test_only_what_some_rank_used_is_added_up() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)) for _ in range(3)]
    given = torch.rand(2, 3, 4, 4).bfloat16()
    parameters[0].grad = given.contiguous(memory_format=torch.channels_last)
    facts = add_gradients(Other(Shard(0, 2)), parameters, torch.tensor([1.5]))
    assert torch.equal(parameters[0].grad, 2 * given)
    assert parameters[1].grad is not None
    assert not parameters[1].grad.any()
    assert parameters[2].grad is None  # or momentum and decay move what nobody used
    assert facts.tolist() == [3.0]


@pytest.mark.parametrize(
    "error",
    [RequestError("a"), UntrustedError("b"), MemoryError("c"), SystemExit("d"), ValueError("e"),
     torch.OutOfMemoryError("f"), OSError(28, "full", "x.y"), KeyError("g")],
)  # fmt: skip
def test_another_process_ends_with_the_same_error(error: BaseException) -> None:
    word = json.loads(json.dumps(together._words(error)))
    other = together._error_of(word)
    assert (type(other), str(other).strip("'\"")) == (type(error), str(error).strip("'\""))


def test_an_error_that_cannot_be_made_again_is_told() -> None:
    class OwnError(Exception):
        pass

    for error in (OwnError("why"), UnicodeDecodeError("utf-8", b"", 0, 1, "why")):
        other = together._error_of(together._words(error))
        assert isinstance(other, RunError)
        assert type(error).__name__ in str(other)
        assert "why" in str(other)


def test_a_signal_is_raised_again_or_told_where_it_is_ignored() -> None:
    word, before = together._words(KeyboardInterrupt()), signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            together._error_of(word)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what a shell starts with `&`
        assert "was sent a signal that ended it" in str(together._error_of(word))
    finally:
        signal.signal(signal.SIGINT, before)


def test_processes_are_met_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, count in ((None, None), ("0", None), (None, "2"), ("0", "1")):
        found = {"RANK": rank, "WORLD_SIZE": count}
        assert together._given({k: v for k, v in found.items() if v}) == Shard(0, 1)
    assert together._given({"RANK": "1", "WORLD_SIZE": "3"}) == Shard(1, 3)
    for wrong in ("3", "one"):
        with pytest.raises(RequestError, match=f"RANK={wrong}"):
            together._given({"RANK": wrong, "WORLD_SIZE": "3"})
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match=r"cannot be met .*MASTER_ADDR"), together.together():
        pass
    with together.apart(), together.together() as ranks:  # as the stages of a recipe are
        assert not ranks.many
