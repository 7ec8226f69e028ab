"""What gradients in bfloat16 leave robust, beside float32, over random starts of PGD.

    python tests/benchmarks/bf16_over_starts.py --gray 1 --starts 10 [--steps 10] [--limit 846]

The published ResNet-20 on lossless CIFAR-10 images, both from the same starts; one thread. A single
run cannot tell a bias of bfloat16 from chance; the mean over starts can.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import banked_model, lossless_images
from rlskit.attacks import prepare
from rlskit.threat.view import attackers_view

BLOCK = 128


def views() -> tuple[nn.Module, nn.Module]:
    """The attacked network in float32 and in bfloat16."""
    model = banked_model()
    exact, rough = (
        attackers_view(model, "transfer", 1, seed=0, repeat=0, bf16=bf16) for bf16 in (False, True)
    )
    return exact, rough


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gray", type=float, default=1, help="budget in gray levels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--limit", type=int, default=846)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = lossless_images(given.limit)
    eps = given.gray / 255
    attack = prepare("pgd", eps=eps, steps=given.steps, step_size=eps / 4)
    judge, rough = views()

    def robust(view: nn.Module, start: int) -> Tensor:
        """Which images withstand, as float32 sees it."""
        found = []
        blocks = zip(torch.split(images, BLOCK), torch.split(labels, BLOCK), strict=True)
        for some, own in blocks:
            noise = torch.Generator().manual_seed(start)
            changed = attack(view, some, own, generator=noise)
            with torch.no_grad():
                found.append(judge(changed).argmax(1) == own)
        return torch.cat(found)

    points = []
    for start in range(given.starts):
        exact, other = robust(judge, start), robust(rough, start)
        points.append(100 * float(other.double().mean() - exact.double().mean()))
        print(
            f"start {start}: fp32 {int(exact.sum())}, bf16 {int(other.sum())} of {len(labels)}: "
            f"{int((other & ~exact).sum())} more, {int((exact & ~other).sum())} fewer",
            flush=True,
        )
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else float("nan")
    print(f"bf16 leaves {statistics.mean(points):+.2f} points (standard error {error:.2f})")


if __name__ == "__main__":
    main()
