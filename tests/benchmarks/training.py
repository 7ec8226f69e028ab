"""What a training step of each defense costs, in ordinary steps of the same network.

    python tests/benchmarks/training.py                   # some five minutes on one thread

A step of rlskit's (K = 3 sampled models for RLS, M = 3 members for the ensembles, one network for
the others) is compared with as many steps of the loop that everyone writes: forward, cross-entropy,
backward, SGD, on the same images in the same memory layout. Processor time of one thread; both run
in turn in one process, and the best of several counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from ratios import ratio
from rich.console import Console
from rich.table import Table
from torch import nn

from rlskit.conversion import convert
from rlskit.data import load
from rlskit.torchvision_ops import declare_missing_operators
from rlskit.training import TrainOptions
from rlskit.training.epochs import Run
from rlskit.training.kept import Files

RESNET20 = f"{Path(__file__).resolve().parents[2] / 'tests' / 'cifar_resnet.py'}:resnet20"
NETWORKS = {"ResNet-20": (RESNET20, 64), "ResNet-18": ("timm:resnet18", 32)}
"""Name -> what to convert, images per step."""
STEPS = {"none": 1, "rls": 3, "ensemble": 3, "adp": 3, "gal": 3, "rse": 1, "dropout": 1, "sap": 1}
"""Defense -> the ordinary steps that its step is compared with."""
TARGETS = {"rls": "<= 1.10", "adp": "<= 1.15", "rse": "<= 1.15", "dropout": "<= 1.15"}


def step_of(defense: str, network: str, size: int) -> Callable[[], object]:
    """Return a training step of rlskit's, on images that are loaded already."""
    model = convert(network, defense=defense, data="digits", in_chans=3, image_size=32)
    options = TrainOptions(group_size=STEPS[defense], batch_size=size)
    data = load("digits", "train", limit=2 * size).adapted(model.card.pixels, 10)
    run = Run(model, options, data, Files(None))
    images, labels = data.images(range(size)), data.labels[:size]
    plans = torch.Generator().manual_seed(0)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    return lambda: run._step(images, labels, plans)


def plain_steps_of(network: str, size: int, count: int) -> Callable[[], object]:
    """Return ordinary steps of the network."""
    banked = convert(network, defense="none", data="digits", in_chans=3, image_size=32)
    model = nn.Sequential(banked.normalize, banked.banks[0]).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    data = load("digits", "train", limit=2 * size).adapted(banked.card.pixels, 10)
    images, labels = data.images(range(size)), data.labels[:size]

    def steps() -> None:
        for _ in range(count):
            sgd.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            loss.item()  # a loop shows its loss

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    declare_missing_operators()
    torch.set_num_threads(1)
    table = Table("network", "defense", "ordinary steps", "ratio", "target", title="Training steps")
    progress = Console(stderr=True)
    for name, (network, size) in NETWORKS.items():
        for defense, count in STEPS.items():
            found = ratio(step_of(defense, network, size), plain_steps_of(network, size, count))
            table.add_row(name, defense, str(count), f"{found:.3f}", TARGETS.get(defense, ""))
            progress.print(f"{name} {defense}: {found:.3f}", highlight=False)
    Console().print(table)


if __name__ == "__main__":
    main()
