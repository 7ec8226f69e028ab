"""Which attack finds the smallest distance, at which cost (AttackBench's question).

    PIP_CONSTRAINT=constraints.txt python -m pip install -e '.[dev,adv-lib]'
    python -m pip install --target /tmp/peers --no-deps secml-torch==1.5
    export PYTHONPATH=/tmp/peers                             # the environment stays as it is
    python tests/benchmarks/distances.py --limit 48          # all: some 10 minutes of one core
    python tests/benchmarks/distances.py --norms l0,linf --limit 16

rlskit's attacks and those of adv-lib and secml-torch, as far as they are installed, look for the
smallest distance to an error of the ResNet-20 of shared/checkpoints, in l2, linf, l1 and l0, on the
same lossless CIFAR-10 images. rlskit attacks what `rlskit attack` would (folded, channels last),
the others the network as it is, in one batch. All numbers are of the images that the network gets
right, and the network as it is judges all. The median counts an image that was not fooled as
infinitely far; `near` is the share that was fooled within the distance of `NEAR`, which is also the
budget of apgd-l1. Seconds are of processor time, of one thread unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from peers import PEERS, banked_model, installed, lossless_images, stock_model
from rlskit.attacks import prepare
from rlskit.pixels import perturbation_norms
from rlskit.threat.meter import Meter
from rlskit.threat.view import attackers_view

NEAR = {"l2": 0.1, "linf": 0.5 / 255, "l1": 1.0, "l0": 10}
"""Norm -> a distance within which about half of the images can be fooled."""

SEARCH = {"kappa": 0.0, "search_steps": 5, "steps": 100}
FAB = {"steps": 20}

OURS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "l2": [
        ("deepfool", {"norm": "l2"}),
        ("ddn", {"steps": 100}),
        ("fmn", {"norm": "l2", "steps": 100}),
        ("fab", {"norm": "l2", **FAB}),
        ("cw", {"c": 0.01, **SEARCH}),
    ],
    "linf": [
        ("deepfool", {"norm": "linf"}),
        ("fmn", {"norm": "linf", "steps": 100}),
        ("fab", {"norm": "linf", **FAB}),
    ],
    "l1": [
        ("fmn", {"norm": "l1", "steps": 100}),
        ("fab", {"norm": "l1", **FAB}),
        ("ead", {"c": 0.1, "decision_rule": "l1", **SEARCH}),
        ("apgd-l1", {"eps": NEAR["l1"], "steps": 100}),
    ],
    "l0": [
        ("sigma-zero", {"steps": 100}),
        ("sigma-zero", {"steps": 300}),
        ("fmn", {"norm": "l0", "steps": 100}),
        ("jsma", {}),
    ],
}
"""Norm -> our attacks and their options."""

ADV_LIB: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "l2": [
        ("deepfool", {"steps": 50, "overshoot": 0.02}),
        ("ddn", {"steps": 100}),
        ("fmn", {"norm": "l2", "steps": 100}),
        ("cw", {"c": 0.01, "lr": 0.01, **SEARCH}),
    ],
    "linf": [("fmn", {"norm": "linf", "steps": 100})],
    "l1": [
        ("fmn", {"norm": "l1", "steps": 100}),
        ("apgd-l1", {"eps": NEAR["l1"], "steps": 100}),
    ],
    "l0": [("sigma-zero", {"steps": 100}), ("fmn", {"norm": "l0", "steps": 100})],
}
SECML: dict[str, list[tuple[str, dict[str, Any]]]] = {
    norm: [("fmn", {"norm": norm, "steps": 100})] for norm in ("l2", "linf", "l1", "l0")
}
SECML["l2"].append(("ddn", {"steps": 100}))
THEIRS = {"adv_lib": ADV_LIB, "secmlt": SECML}
"""Key of `peers.PEERS` -> norm -> attacks and their options."""

PACKAGES = {"rlskit": "rlskit", "torch": "torch", "adv_lib": "adv-lib", "secmlt": "secml-torch"}


def main() -> None:
    options = read_options()
    warnings.simplefilter("ignore", DeprecationWarning)  # of what adv-lib imports
    torch.set_num_threads(options.threads)
    images, labels = lossless_images(options.limit)
    stock = stock_model()
    with torch.no_grad():
        right = stock(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    peers = [name for name in THEIRS if name in installed()]
    names = [PACKAGES[name] for name in ("rlskit", "torch", *peers)]
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"{packages}; {len(images)} images, {options.threads} thread(s), processor time")
    for peer in peers:  # an import is no work
        PEERS[peer]("ddn", stock, images[:1], labels[:1], {"steps": 1})
    for norm in options.norms.split(","):
        print(f"\n{norm:24}  fooled    near    median  forwards  backwards  s/image")
        for method, settings in OURS[norm]:
            report(norm, f"{method} {told(settings)}", images, labels, *ours(method, settings))
        for peer in peers:
            for method, settings in THEIRS[peer][norm]:
                name = f"{PACKAGES[peer]} {method} {told(settings)}"
                report(norm, name, images, labels, *theirs(peer, method, settings))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--norms", default=",".join(OURS), help="names separated by commas")
    parser.add_argument("--limit", type=int, default=48, help="number of images")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def told(settings: dict[str, Any]) -> str:
    """Return how many steps an attack takes, where that is said."""
    if "steps" not in settings:
        return ""
    often = settings.get("search_steps", 1)
    return f"{often} x {settings['steps']}" if often > 1 else str(settings["steps"])


Run = Callable[[Tensor, Tensor], Tensor]


def ours(method: str, settings: dict[str, Any]) -> tuple[Run, Meter]:
    meter = Meter(attackers_view(banked_model(), "transfer", 1, seed=0, repeat=0), 1)
    attack = prepare(method, **settings)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # as `rlskit attack` does
        return attack(meter, images, labels, generator=torch.Generator().manual_seed(0))

    return run, meter


def theirs(peer: str, method: str, settings: dict[str, Any]) -> tuple[Run, Meter]:
    meter = Meter(stock_model(), 1).eval()
    return lambda images, labels: PEERS[peer](method, meter, images, labels, settings), meter


def report(norm: str, name: str, images: Tensor, labels: Tensor, run: Run, meter: Meter) -> None:
    """Run an attack once, and print its line."""
    start = time.process_time()
    try:
        adversarial = run(images, labels)
    except RuntimeError as error:
        print(f"{name:24}  breaks off: {error}", flush=True)
        return
    seconds = (time.process_time() - start) / len(images)
    with torch.no_grad():
        fooled = stock_model()(adversarial).argmax(1) != labels
    distance = perturbation_norms(images, adversarial)[norm]
    distance = torch.where(fooled, distance, torch.inf)
    near = (distance <= NEAR[norm] + 1e-6).double().mean()
    print(
        f"{name:24}  {fooled.double().mean():6.1%}  {near:6.1%}  {distance.median():8.5f}  "
        f"{meter.forwards / len(images):8.1f}  {meter.backwards / len(images):9.1f}  "
        f"{seconds:7.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
