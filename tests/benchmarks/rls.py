"""What RLS costs beside the plain network: evaluation, attack and conversion, as ratios of one run.

    python tests/benchmarks/rls.py                        # some five minutes on one thread

Both sides of a ratio run in turn, and the best of several counts: processor seconds of one thread
for what computes, seconds on the clock for what writes files. Nothing is asserted; each number
stands beside its target. ResNet-20 has the published weights of `shared/checkpoints` if they are
here; the time is the same without.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ratios import ratio
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlskit.attacks import prepare
from rlskit.conversion import to_banks as conversion
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits, mean_log_probabilities
from rlskit.models import BankedModel, Card, resolve
from rlskit.models.architecture import Architecture
from rlskit.models.banks import Normalize
from rlskit.models.building import build, configure
from rlskit.models.checkpoint import save
from rlskit.models.partition import partition
from rlskit.models.trace import trace
from rlskit.pixels import Pixels
from rlskit.threat.view import attackers_view
from rlskit.torchvision_ops import declare_missing_operators

N, BANKS, ATTACKED, STEPS = 10, 2, 5, 2
TESTS = Path(__file__).resolve().parents[1]
WEIGHTS = Path(__file__).resolve().parents[3] / "shared/checkpoints/cifar10-resnet20.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet20() -> nn.Module:
    sys.path.insert(0, str(TESTS))
    from cifar_resnet import resnet20 as factory  # type: ignore[import-not-found, unused-ignore]

    network: nn.Module = factory()
    if WEIGHTS.is_file():
        network.load_state_dict(load_file(WEIGHTS))
    return network


def resnet50() -> nn.Module:
    return build(configure(resolve("timm:resnet50"), classes=10, channels=3, image_size=(96, 96)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-20": (resnet20, 32, 64),
    "ResNet-50": (resnet50, 96, 8),
}
"""Name -> factory, side of the images, images in a block."""


class Case:
    """A network, a model with copies of it as banks (values do not change the cost), images."""

    def __init__(self, name: str, granularity: str) -> None:
        factory, side, count = NETWORKS[name]
        pixels = Pixels(3, side, side, MEAN, STD)
        network = factory().eval()
        banks = [copy.deepcopy(network) for _ in range(BANKS)]
        parts = partition(network, trace(network, pixels.shape), granularity)
        card = Card(Architecture("own", name), pixels, 10, pretrained="a benchmark")
        self.model = BankedModel(banks, parts, card)
        self.plain = nn.Sequential(Normalize(pixels), network).eval().requires_grad_(False)
        self.images = torch.rand(count, *pixels.shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) % 10

    @torch.no_grad()
    def evaluation(self, count: int, seed: int) -> float:
        """Return the cost of N draws' answer, in units of N plain forward passes."""
        defenders = draws(self.model, count, seed=seed, purpose="defender")
        return ratio(
            lambda: mean_log_probabilities(finite_logits(defenders, self.images)),
            lambda: [self.plain(self.images) for _ in range(count)],
        )

    def attack(self, count: int, *, folded: bool) -> float:
        """Return the cost of PGD on a view of n draws, in units of PGD on the plain network."""
        pgd = prepare("pgd", eps="8/255", steps=STEPS)
        protocol = "transfer" if count == 1 else "multi"
        view = attackers_view(self.model, protocol, count, seed=0, repeat=0, folded=folded)

        def run(model: nn.Module) -> Tensor:
            noise = torch.Generator().manual_seed(0)
            return pgd(model, self.images, self.labels, generator=noise)

        return ratio(lambda: run(view), lambda: run(self.plain))


def convert(folder: Path) -> None:
    model = conversion.convert("timm:resnet50", banks=BANKS, num_classes=1000, image_size=224)
    save(model, folder / "rls.safetensors", force=True)


def build_plain(folder: Path) -> None:
    import timm

    for bank in range(BANKS):
        network = timm.create_model("resnet50", num_classes=1000)
        save_file(network.state_dict(), folder / f"plain{bank}.safetensors")


PEAKS: dict[str, Callable[[Path], None]] = {
    "convert": convert,
    "plain": build_plain,
    "import": lambda folder: None,
}
"""Name -> what a process of its own does before it prints the most memory it ever had."""


def peak(what: str) -> float:
    """Return the peak memory of a process that does `what`, in bytes."""
    command = [sys.executable, __file__, "--peak", what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(what: str) -> None:
    import timm

    assert timm
    with tempfile.TemporaryDirectory() as folder:
        PEAKS[what](Path(folder))
    # Not `getrusage`: its maximum starts with that of the process that started this one.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)


def measure(add: Callable[[str, str, float, str], None]) -> None:
    for name in NETWORKS:
        for granularity, target in (("layer", "<= 1.02"), ("stage", "<= 0.70")):
            case = Case(name, granularity)
            what = f"eval, N = {N}, --granularity {granularity}"
            for seed in range(2):
                add(name, f"{what}, seed {seed}", case.evaluation(N, seed), target)
        case = Case(name, "layer")
        for folded in (False, True):
            what = "pgd" + (", folded as `attack` does" if folded else "")
            bound = "<= " if folded else ""
            add(name, f"{what}, 1 draw", case.attack(1, folded=folded), f"{bound}1 ± 0.02")
            each = case.attack(ATTACKED, folded=folded) / ATTACKED
            add(name, f"{what}, {ATTACKED} draws, per draw", each, f"{bound}1 ± 0.02")
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        seconds = ratio(lambda: convert(there), lambda: build_plain(there), clock=time.perf_counter)
    one = sum(t.numel() * t.element_size() for t in resnet50_of_imagenet().state_dict().values())
    bare = peak("import")
    add("ResNet-50", f"convert --banks {BANKS}, of {BANKS} plain ones", seconds, "<= 1.30")
    for what, target in (("convert", f"<= {BANKS + 1}"), ("plain", "")):
        add("ResNet-50", f"peak memory of {what}, in models", (peak(what) - bare) / one, target)


def resnet50_of_imagenet() -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("resnet50", num_classes=1000)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    declare_missing_operators()
    torch.set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.peak)
        return
    table = Table("network", "what", "ratio", "target", title="RLS beside the plain network")
    console, progress = Console(), Console(stderr=True)

    def add(network: str, what: str, value: float, target: str) -> None:
        table.add_row(network, what, f"{value:.3f}", target)
        progress.print(f"{network} {what}: {value:.3f}", highlight=False)

    measure(add)
    console.print(table)


if __name__ == "__main__":
    main()
