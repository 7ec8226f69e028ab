"""Trainings by two processes, for `test_ranks.py`: one process that loads torch forks all others.

Prints one JSON object of what was found.
"""

from __future__ import annotations

import copy
import io
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import small_models
from rlskit import cli, seeds, train
from rlskit.models.banks import BankedModel
from rlskit.runtime import together
from rlskit.seeds import Purpose
from rlskit.training import TrainOptions
from rlskit.training.epochs import Run
from rlskit.training.kept import Files
from rlskit.training.ranks import Share

NET = """
import os, signal
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_chans, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.linear = nn.Dropout(0.3), nn.Linear(256, num_classes)
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 20 and os.environ.get("RANK") == "1":
            how = os.environ.get("HOW", "")
            if how in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, how))
            if how == "broken":
                raise ValueError("broken in the second process")
            if how == "nan":
                images = images * float("nan")
        return self.linear(self.drop(self.norm(self.conv(images)).relu().flatten(1)))
"""

TRAIN = ["train", "--epochs", "2", "--limit", "203", "--batch-size", "30", "--augment", "crop-flip"]
TRAIN += ["--save-every", "2", "-q"]


def in_two(work: Callable[[int], int]) -> list[int]:
    """Fork two processes that find each other; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            found = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in found.items()})
            try:
                os._exit(work(rank))
            except BaseException:
                traceback.print_exc()
                os._exit(99)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def plain(banks: int, layers: int = 2) -> BankedModel:
    return small_models.model(
        banks,
        layers=layers,
        build=lambda seed: small_models.network(seed, batch_norm=False),
    )


def gradients_of(network: nn.Module) -> Tensor:
    return torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])


def gradients(rank: int) -> int:
    """Compare a step's gradients with DDP's, and with those of one process; 0 where they agree."""
    model = plain(1, layers=1)
    whole, other = copy.deepcopy(model), copy.deepcopy(model.banks[0])
    options = TrainOptions(batch_size=20, group_size=1)
    data = small_models.digits(20, "train")
    images, labels = data.images(range(20)), data.labels
    with together.together() as ranks:
        share = Share.of(20, ranks.shard)
        run = Run(model, options, data, Files(None), ranks=ranks)
        plans = seeds.generator(0, Purpose.TRAIN_PLANS)
        facts = run._step(images[share.mine], labels[share.mine], plans, share)
        ddp = DistributedDataParallel(other)
        logits = ddp(model.normalize(images[share.mine]))
        torch.autograd.backward(nn.functional.cross_entropy(logits, labels[share.mine]))
    alone = Run(whole, options, data, Files(None))._step(images, labels, plans)
    ours, theirs, one = map(gradients_of, (model, other, whole))
    assert (ours - theirs).abs().max() < 1e-6 < one.abs().max()
    assert (ours - one).abs().max() < 1e-6
    assert torch.allclose(facts, alone), rank
    return 0


OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch_size": 20, "lr": 0.1, "holdout": 0.2, "augment": "crop-flip",
    "adversarial": "pgd", "adversarial_steps": 2, "weight_decay": 0.1,
}  # fmt: skip
"""Five steps an epoch, the last of 3 images: too few for two processes."""


def trained(out: Path) -> None:
    train(plain(2), small_models.digits(103, "train"), out=out, **OPTIONS)


def shared(rank: int) -> int:
    with together.together():
        trained(Path("two.safetensors"))
    return 0


def command(arguments: list[str], how: str = "") -> tuple[list[int], str]:
    """Run a command in two processes; return the exit codes, and what the first one said."""
    log = Path("said.txt")
    log.unlink(missing_ok=True)

    def work(rank: int) -> int:
        os.environ["HOW"] = how
        with log.open("a") as said, redirect_stdout(said), redirect_stderr(said):
            return cli.run(arguments)

    return in_two(work), log.read_text()


def main() -> None:
    together._PATIENCE = 0.5
    together._LINGER = 0.5
    trained(Path("one.safetensors"))  # which loads all that the others need
    found: dict[str, Any] = {"gradients": in_two(gradients), "shared": in_two(shared)}
    found["files"] = sorted(str(file) for file in Path().glob("two*"))
    Path("net.py").write_text(NET)
    convert = ["convert", "net.py:Net", "--image-size", "8", "--data", "digits", "-q"]
    with redirect_stdout(io.StringIO()):
        assert cli.run(convert) == 0
    found["whole"] = command([*TRAIN, "-o", "whole.safetensors"])
    for how in ("broken", "nan"):
        found[how] = command([*TRAIN, "-o", f"{how}.safetensors"], how)
    out = [*TRAIN, "-o", "stopped.safetensors"]
    found["SIGKILL"] = command(out, "SIGKILL")
    found["SIGTERM"] = command(out, "SIGTERM")
    said = io.StringIO()
    with redirect_stderr(said):
        found["alone"] = [cli.run(out), said.getvalue()]
    found["went on"] = command(out)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
