r"""How much of a known truth an attack finds, and at what cost.

    python tests/benchmarks/ground_truth.py pgd --loss margin --steps 100
    python tests/benchmarks/ground_truth.py adaptive              # half an hour, one thread

The network is `../shared/checkpoints/mnist-wk17a.safetensors` of Wong & Kolter 2018: exactly 438 of
MNIST's 10,000 test images are errors or have an adversarial example at linf 0.1 (Tjeng et al. 2019,
https://arxiv.org/abs/1711.07356). Attacked are the images that are right as they are and that APGD
breaks at 0.12; the others, PGD or APGD leaves far from an error at 0.12, and count as robust, which
can only lower what is found. Prints that, and passes and seconds per attacked image. `--limit`
attacks the first so many only, for a look; `--all` all that are right, in blocks of `--block`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rlskit
from rlskit.attacks import prepare
from rlskit.attacks.losses import margin
from rlskit.data import load
from rlskit.threat.adaptive import prepare_adaptive
from rlskit.threat.meter import Meter

SHARED = Path(__file__).parents[3] / "shared"
EPS, BEYOND, NEAR = 0.1, 0.12, 1.5


def wk17a() -> nn.Module:
    """The network, on pixels in [0, 1]."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    network.load_state_dict(load_file(SHARED / "checkpoints" / "mnist-wk17a.safetensors"))
    return network.eval()


@torch.no_grad()
def leads(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return margin(model(images), labels)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def in_doubt(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the rows that are right, and wrong at `BEYOND` by a short PGD and then by APGD."""
    rows = (leads(model, images, labels) >= 0).nonzero().squeeze(1)
    short = prepare("pgd", eps=BEYOND, steps=10, step_size=BEYOND / 4, loss="margin")
    for attack, near in ((short, NEAR), (prepare("apgd-ce", eps=BEYOND), 0)):
        found = attack(model, images[rows], labels[rows], generator=generator())
        rows = rows[leads(model, found, labels[rows]) < near]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", help="a method of `rlskit attack`, or adaptive")
    for option in ("--steps", "--restarts", "--loss", "--step_size", "--target_classes"):
        parser.add_argument(option)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--block", type=int, default=128)
    options: dict[str, Any] = vars(parser.parse_args())
    method, limit, size = (options.pop(name) for name in ("method", "limit", "block"))
    everything = options.pop("all")
    torch.set_num_threads(1)
    data = load("mnist", "test", data_dir=SHARED / "data", limit=limit)
    images, labels = data.images(range(len(data))), data.labels
    model = wk17a()
    errors = int((leads(model, images, labels) < 0).sum())
    right = (leads(model, images, labels) >= 0).nonzero().squeeze(1)
    rows = right if everything else in_doubt(model, images, labels)
    print(f"{errors} errors, {len(rows)} images attacked", flush=True)

    found, passes, start = [], 0, time.perf_counter()
    for block in torch.split(rows, size):
        clean, own = images[block], labels[block]
        if method == "adaptive":
            banked = rlskit.wrap(model, (1, 28, 28))
            crafted = prepare_adaptive(banked, eps=EPS).craft(banked, clean, own, seed=0, repeat=0)
            changed, asked = crafted.images, crafted.forwards + crafted.backwards
        else:
            if "eps" in prepare(method).params:
                options["eps"] = EPS
            meter = Meter(model, 1)
            changed = prepare(method, **options)(meter, clean, own, generator=generator())
            asked = meter.forwards + meter.backwards
        moved = (changed - clean).abs().amax((1, 2, 3))
        broken = (leads(model, changed, own) < 0) & (moved <= EPS + 1e-6)
        found += block[broken].tolist()
        passes += asked
        print(f"{len(found)} so far", flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{method}: {errors + len(found)} of 438, {passes / len(rows):,.0f} forwards + backwards "
        f"and {seconds / len(rows):.2f} s per attacked image"
    )
    print("found:", *found)


if __name__ == "__main__":
    main()
