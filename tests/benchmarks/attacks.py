"""Compare rlskit's attacks with those of its peers: speed, work done, success and distance.

    PIP_CONSTRAINT=constraints.txt python -m pip install -e '.[dev,benchmarks]'
    python -m pip install --target /tmp/peers --no-deps secml-torch==1.5 pyautoattack==0.2.0
    export PYTHONPATH=/tmp/peers                      # the environment stays as it is
    python tests/benchmarks/attacks.py                # the first five: some 20 minutes
    python tests/benchmarks/attacks.py --attacks deepfool,cw --limit 32 --threads 1 --clock cpu
    python tests/benchmarks/attacks.py --attacks pgd --steps 40 --bf16
    python tests/benchmarks/attacks.py --attacks apgd-ce,autoattack --gray 8 --restless

Everybody attacks the ResNet-20 of shared/checkpoints on the same lossless CIFAR-10 images with the
same settings (tests/peers.py), by turns in one process; the best of the rounds counts, but who is
ten times slower than rlskit runs only once. rlskit attacks what `rlskit attack` would (folded,
channels last; compiled with --compile), the peers the network as it is. A peer that stops early is
compared by its time per step; who lacks an attack is left out of it. With --bf16 rlskit runs once
more with gradients in bfloat16 (`rlskit attack --precision bf16`), and what that leaves robust is
compared image by image. In APGD and AutoAttack, rlskit lets images rest that are surely fooled, as
`rlskit attack` does on an undefended network; with --restless it also runs without. The floor is
the bare time of rlskit's own forward and backward passes on the best layout. Exits with 1 when a
target is missed.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from peers import (
    DIFFERENCES,
    HAVE,
    OURS,
    PEERS,
    SETTINGS,
    Peer,
    banked_model,
    installed,
    lossless_images,
    stock_model,
)
from rlskit.attacks import ATTACKS
from rlskit.pixels import perturbation_norms
from rlskit.stats import mcnemar
from rlskit.threat.meter import Meter
from rlskit.threat.view import attackers_view

DISTRIBUTIONS = {
    "art": "adversarial-robustness-toolbox",
    "adv_lib": "adv-lib",
    "secmlt": "secml-torch",
}


@dataclass(frozen=True)
class Target:
    """What is asked of one attack: times faster than a peer, and time as a multiple of the floor.

    Attributes:
        faster: Peer -> factor.
        compiled: The factor against the best peer with --compile; None for the same.
        floor: Largest multiple.
    """

    faster: dict[str, float]
    compiled: float | None
    floor: float


TARGETS = {
    "fgsm": Target({"the best peer": 1.25}, 1.5, 1.05),
    "pgd": Target({"the best peer": 1.25}, 1.5, 1.05),
    "deepfool": Target({"torchattacks": 10, "foolbox": 6}, None, 1.3),
    "cw": Target({"the best peer": 1.5}, 1.8, 1.1),
    "ead": Target({"the best peer": 1.6}, 1.9, 1.1),
    "apgd-ce": Target({"the best peer": 3}, 3, 1.1),
    "apgd-t": Target({"the best peer": 3}, 3, 1.1),
    "autoattack": Target({"the best peer": 3}, None, 1.1),
}
DISTANCES = {"deepfool": "l2", "cw": "l2", "ead": "elastic net"}
"""Attack -> the norm whose median is shown; linf of the others."""
BF16 = "rlskit bf16"
RESTLESS = "no rest"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Entrant:
    """One implementation of one attack, and what came of it."""

    run: Callable[[Tensor, Tensor], Tensor]
    meter: Meter
    adversarial: Tensor | None = None
    seconds: float = float("inf")
    forwards: float = 0.0
    backwards: float = 0.0


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    images, labels = lossless_images(options.limit)
    peers = {name: run for name, run in installed().items() if name in options.peers.split(",")}
    print_setting(options, list(peers))
    view = attackers_view(banked_model(), "transfer", 1, seed=0, repeat=0, compiled=options.compile)
    rough = attackers_view(banked_model(), "transfer", 1, seed=0, repeat=0, bf16=True)
    for name, run in peers.items():  # imports are no work
        method = next(one for one in ("pgd", "apgd-ce") if one in HAVE[name].split())
        run(method, stock_model(), images[:1], labels[:1], SETTINGS[method])
    met = True
    for method in options.attacks:
        entrants = {"rlskit": ours(method, view)}
        if options.restless:
            entrants[RESTLESS] = ours(method, view, rest=False)
        if options.bf16 and ATTACKS[method].only_follows:
            entrants[BF16] = ours(method, rough)
        entrants |= {
            name: theirs(method, run) for name, run in peers.items() if method in HAVE[name].split()
        }
        base = Base(view, images[:128], SETTINGS[method].get("steps", 1), options.compile)
        for _ in range(options.rounds):
            base.measure(CLOCKS[options.clock])
            mine = entrants["rlskit"]
            for entrant in entrants.values():
                if entrant.adversarial is None or entrant.seconds < 10 * mine.seconds:
                    measure(entrant, images, labels, CLOCKS[options.clock])
        print_table(method, entrants, images, labels)
        met &= print_verdict(method, entrants, base, options.compile)
    return 0 if met else 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attacks", default="fgsm,pgd,deepfool,cw,ead", help="names separated by commas"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="those of them that are installed")
    parser.add_argument("--limit", type=int, default=128, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="compile what rlskit attacks")
    parser.add_argument("--bf16", action="store_true", help="run rlskit with such gradients, too")
    parser.add_argument("--restless", action="store_true", help="run rlskit with no image at rest")
    parser.add_argument("--steps", type=int, help="of PGD")
    parser.add_argument(
        "--gray", type=float, help="eps in gray levels, of PGD, APGD and AutoAttack"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="cpu: processor time over all threads, for a machine that is not quiet",
    )  # fmt: skip
    options = parser.parse_args()
    options.attacks = options.attacks.split(",")
    if options.steps is not None:
        SETTINGS["pgd"] = {**SETTINGS["pgd"], "steps": options.steps}
    if options.gray is not None:
        eps = options.gray / 255
        SETTINGS["pgd"] = {**SETTINGS["pgd"], "eps": eps, "step_size": eps / 4}
        for method in ("apgd-ce", "apgd-t", "autoattack"):
            SETTINGS[method] = {**SETTINGS[method], "eps": eps}
    for method in options.attacks:
        if method not in TARGETS:
            parser.error(f"--attacks {method!r} is unknown; it is {', '.join(TARGETS)}")
        if options.compile and not ATTACKS[method].compiles:
            parser.error(f"--compile cannot serve {method}; choose others with --attacks")
    return options


def print_setting(options: argparse.Namespace, peers: list[str]) -> None:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    packages = ["rlskit", "torch", *(DISTRIBUTIONS.get(peer, peer) for peer in peers)]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"commit {commit or 'unknown'}; Python {platform.python_version()}; {versions}")
    print(
        f"{options.limit} images, {options.threads} threads, best of {options.rounds} rounds, "
        f"{options.clock} time{', compiled' if options.compile else ''}"
    )


class Base:
    """Seconds per image of the bare passes: on the whole batch or pieces of 32, channels last.

    As many passes are timed together as the attack takes steps, up to 10: the mean of many is more
    than the least of few where other work disturbs.

    Attributes:
        forward: Of a forward pass alone.
        both: Of a forward and a backward pass.
    """

    def __init__(self, view: nn.Module, images: Tensor, steps: int, compiled: bool) -> None:
        self.steps = min(steps, 10)
        self.compiled = compiled  # then one pass cannot be differentiated twice
        self.view, self.images = view, images.contiguous(memory_format=torch.channels_last)
        self.forward = self.both = self._five = float("inf")

    def measure(self, clock: Callable[[], float]) -> None:
        """Time all of them once more; the best counts."""
        for size in sorted({32, len(self.images)}):
            self.forward = min(self.forward, self._time(0, size, clock))
            self.both = min(self.both, self._time(1, size, clock))
            if not self.compiled:
                self._five = min(self._five, self._time(5, size, clock))

    def _time(self, backwards: int, size: int, clock: Callable[[], float]) -> float:
        start = clock()
        for first in list(range(0, len(self.images), size)) * self.steps:
            x = self.images[first : first + size].detach().requires_grad_(backwards > 0)
            with torch.set_grad_enabled(backwards > 0):
                total = self.view(x).sum()
            for left in reversed(range(backwards)):
                torch.autograd.grad(total, x, retain_graph=left > 0)
        return (clock() - start) / len(self.images) / self.steps

    @property
    def further(self) -> float:
        """Seconds of one more backward pass."""
        return (self._five - self.both) / 4

    def floor(self, forwards: float, backwards: float) -> float:
        """Seconds per image that so many passes take at least."""
        graphs = min(forwards, backwards)
        further = (backwards - graphs) * self.further if backwards > graphs else 0
        return (forwards - graphs) * self.forward + graphs * self.both + further


def ours(method: str, view: nn.Module, **more: Any) -> Entrant:
    meter = Meter(view, 1)
    settings = {**SETTINGS[method], **OURS.get(method, {}), **more}
    attack, generator = ATTACKS[method].run, torch.Generator().manual_seed(0)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # as `rlskit attack` does
        return attack(meter, images, labels, generator=generator, **settings)

    return Entrant(run, meter)


def theirs(method: str, run: Peer) -> Entrant:
    meter = Meter(stock_model(), 1).eval()
    return Entrant(lambda x, y: run(method, meter, x, y, SETTINGS[method]), meter)


def measure(entrant: Entrant, images: Tensor, labels: Tensor, clock: Callable[[], float]) -> None:
    entrant.meter.forwards = entrant.meter.backwards = 0
    start = clock()
    entrant.adversarial = entrant.run(images, labels)
    entrant.seconds = min(entrant.seconds, (clock() - start) / len(images))
    entrant.forwards = entrant.meter.forwards / len(images)
    entrant.backwards = entrant.meter.backwards / len(images)


def print_table(method: str, entrants: dict[str, Entrant], images: Tensor, labels: Tensor) -> None:
    stock, norm = stock_model(), DISTANCES.get(method, "linf")
    with torch.no_grad():
        correct = stock(images).argmax(1) == labels
    print(f"\n{method} {SETTINGS[method]}")
    print("              images/s  forwards  backwards  success  median " + norm)
    for name, entrant in entrants.items():
        assert entrant.adversarial is not None
        with torch.no_grad():
            fooled = (stock(entrant.adversarial).argmax(1) != labels) & correct
        norms = perturbation_norms(images, entrant.adversarial)
        norms["elastic net"] = norms["l2"] ** 2 + SETTINGS["ead"]["beta"] * norms["l1"]
        median = norms[norm][fooled].median().item()
        print(
            f"{name:12}  {1 / entrant.seconds:8.2f}  {entrant.forwards:8.1f}  "
            f"{entrant.backwards:9.1f}  {fooled.sum() / correct.sum():7.1%}  {median:.4f}"
        )
        if name in (BF16, RESTLESS):
            print_paired(entrants["rlskit"], entrant, name, labels)
        if (name, method) in DIFFERENCES:
            print(f"    {name}: {DIFFERENCES[name, method]}")


@torch.no_grad()
def print_paired(exact: Entrant, rough: Entrant, name: str, labels: Tensor) -> None:
    """Print what another run of ours left robust and the first did not, and McNemar's p."""
    stock = stock_model()
    found = [entrant.adversarial for entrant in (exact, rough)]
    one, other = (stock(x).argmax(1) == labels for x in found if x is not None)
    more, fewer = int((other & ~one).sum()), int((one & ~other).sum())
    points = 100 * (more - fewer) / len(labels)
    print(
        f"    robust: {one.float().mean():.2%} by rlskit, {other.float().mean():.2%} by {name} "
        f"({points:+.2f} points; {more} more, {fewer} fewer, p = {mcnemar(more, fewer):.2f})"
    )


def print_verdict(method: str, entrants: dict[str, Entrant], base: Base, compiled: bool) -> bool:
    """Print rlskit's ratios beside their targets; say whether all were met."""
    mine, target, met = entrants["rlskit"], TARGETS[method], True
    ratios = {}
    for name, entrant in entrants.items():
        if name not in ("rlskit", BF16, RESTLESS):
            ratios[name] = entrant.seconds / mine.seconds
            if method in ("cw", "ead") and entrant.backwards < 0.9 * mine.backwards:
                ratios[name] *= mine.backwards / entrant.backwards
                print(f"{name} stopped early: its time per step is compared")
    if ratios:
        ratios["the best peer"] = min(ratios.values())
    asked = target.faster
    if compiled and target.compiled is not None:
        asked = {"the best peer": target.compiled}
    for name, factor in asked.items():
        if name in ratios:
            met &= verdict(f"faster than {name}", ratios[name], factor, -1)
    if rough := entrants.get(BF16):
        print(f"{rough.seconds / mine.seconds:6.2f} of the time with gradients in bfloat16")
        if ratios:
            gain = ratios["the best peer"] * mine.seconds / rough.seconds
            met &= verdict(f"{BF16} faster than the best peer", gain, 2.5, -1)
    floor = base.floor(mine.forwards, mine.backwards)
    bare = f"forward {1e3 * base.forward:.2f} ms, with backward {1e3 * base.both:.2f}"
    if not compiled:
        bare += f", further backward {1e3 * base.further:.2f}"
    print(f"bare passes: {bare}")
    return verdict("of the floor", mine.seconds / floor, target.floor, 1) and met


def verdict(what: str, value: float, target: float, sign: int) -> bool:
    """Print a ratio beside its target: at most that with sign 1, at least that with -1."""
    met = sign * value <= sign * target
    bound = "<=" if sign > 0 else ">="
    print(f"{value:6.2f} x {what} (target {bound} {target}: {'met' if met else 'MISSED'})")
    return met


if __name__ == "__main__":
    sys.exit(main())
