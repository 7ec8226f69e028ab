"""What the paper's Table 1 at full size, and ImageNet under `adaptive`, cost on 1, 8 and 64 GPUs.

    python tests/benchmarks/scale.py                     # at the rates of the device here
    python tests/benchmarks/scale.py --rates FILE.json   # at those of another, measured before

Counts passes as `rlskit run --dry-run` does (upper bounds), and takes the seconds of a forward and
of a backward pass from the device: of ResNet-50 on 32 pixels attacked and trained, and on 224
attacked. Attacks are split by blocks of 128 images (`--shard`), so the block that is the last one
of the fullest GPU ends them. A training stays on one GPU, or is spread by torchrun: then its passes
are shared out, and each step adds up what it sends once they are done, in a ring, over links of
`--within` one machine of eight GPUs and `--between` machines, in GB/s per GPU. Latency and the
launching of kernels are not counted, so that is a bound from below. A file of rates is
`{"attack": [forward, backward], "train": [...], "imagenet": [...]}`, in seconds an image.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import rlskit
from rlskit import recipes
from rlskit.models.banks import BankedModel
from rlskit.recipes.cost import Cost, cost, hours_of, rate
from rlskit.runtime.devices import choose_device

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "recipes" / "paper" / "table1-cifar10.toml"
GPUS = (1, 8, 64)
BLOCK = 128
"""Images of an attack's block, and of a training's step."""
K = 3
MACHINE = 8
"""GPUs that the faster links join."""

SENT = 0.165
"""GB that a step of the paper's RLS adds up (docs/scale.md, "What is sent")."""

Rates = Mapping[str, Sequence[float]]


def resnet50(defense: str, side: int) -> BankedModel:
    """Return ResNet-50 as the paper's recipe has it at 32 pixels, and as ImageNet's at 224."""
    small = side == 32
    return rlskit.convert(
        "resnet50", defense=defense, small_images=small, image_size=side, in_chans=3,
        num_classes=10 if small else 1000, banks=2 if defense == "rls" else 1,
    )  # fmt: skip


def measured() -> Rates:
    """Return the rates of the device that is here."""
    device = choose_device()
    small, large = (resnet50("none", side).to(device) for side in (32, 224))
    return {"attack": rate(small), "train": rate(small, training=True), "imagenet": rate(large)}


def split(found: Cost, speed: Sequence[float], gpus: int) -> float:
    """Return the hours of a stage whose blocks are shared out."""
    blocks = math.ceil(found.images / BLOCK)
    return hours_of(found, (speed[0], speed[1])) * math.ceil(blocks / gpus) / blocks


def sending(gpus: int, links: Mapping[str, float]) -> float:
    """Return the seconds in which a ring adds up what one step of RLS sends."""
    slowest = links["within"] if gpus <= MACHINE else links["between"]
    return 2 * (gpus - 1) / gpus * SENT / slowest


def table_1(rates: Rates, links: Mapping[str, float]) -> dict[str, list[float]]:
    """Return hours by what is done, for each number of GPUs."""
    stages = recipes.load(TABLE).stages
    hours: dict[str, list[float]] = {}
    for row in ("none", "rls"):
        model = resnet50(row, 32)
        own = [(stage, cost(stage, model)) for stage in stages if stage.name.startswith(f"{row}/")]
        counted = [(stage.command, found) for stage, found in own if found and found.images]
        (training,) = (found for command, found in counted if command == "train")
        attacks = [found for command, found in counted if command != "train"]
        speed = (rates["train"][0], rates["train"][1])
        hours[f"training {row}"] = [hours_of(training, speed)] * len(GPUS)
        if row == "rls":
            steps = training.backwards / (K * BLOCK)
            sent = [steps * sending(gpus, links) / 3600 for gpus in GPUS]
            hours["training rls, its passes spread"] = [
                hours_of(training, speed) / gpus for gpus in GPUS
            ]
            hours["... and sending besides"] = sent
        hours[f"ten cells of {row}"] = [
            sum(split(found, rates["attack"], gpus) for found in attacks) for gpus in GPUS
        ]
    return hours


def imagenet(rates: Rates) -> dict[str, list[float]]:
    """Return the hours of `adaptive` on ImageNet's 50,000 images, by number of GPUs."""
    column = {"protocol": "adaptive", "eps": "4/255"}
    model = resnet50("none", 224)
    stage = recipes.Stage("none/adaptive", "attack", column, needs=None, checkpoint="resnet50")
    found = cost(stage, model, 50_000)
    assert found is not None
    return {"ImageNet, adaptive": [split(found, rates["imagenet"], gpus) for gpus in GPUS]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=Path, help="file of rates")
    parser.add_argument("--within", type=float, default=300, help="GB/s in a machine (300)")
    parser.add_argument("--between", type=float, default=50, help="GB/s between machines (50)")
    options = vars(parser.parse_args())
    given, links = options.pop("rates"), options
    torch.manual_seed(0)
    rates: Rates = json.loads(given.read_text()) if given else measured()
    print(json.dumps({name: [float(f"{one:.3g}") for one in pair] for name, pair in rates.items()}))
    print(f"{'hours at most on':32}" + "".join(f"{gpus:>10} GPU" for gpus in GPUS))
    for name, hours in {**table_1(rates, links), **imagenet(rates)}.items():
        print(f"{name:32}" + "".join(f"{one:14.2f}" for one in hours))


if __name__ == "__main__":
    main()
