"""PGD and DeepFool on a GPU beside torchattacks: ResNet-50, 256 images of 224 pixels.

    python -m pip install -c constraints.txt -e '.[benchmarks]'
    python tests/benchmarks/gpu.py                             # on CUDA; --compile for compiled PGD
    python tests/benchmarks/gpu.py --device cpu --limit 4 --side 64      # that it runs at all

Both attack the same network of random weights (10 classes, labels its own answers: the cost is that
of a trained one, DeepFool's number of steps is not) in turn; the best of three runs counts,
of fewer where they are long.
torchattacks' DeepFool takes one image at a time, so it is measured on few.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torchattacks
from torch import Tensor

import rlskit
from rlskit.attacks import prepare
from rlskit.recipes.cost import seconds_of
from rlskit.threat.view import attackers_view

EPS, STEPS = 2 / 255, 10
TARGETS = {"pgd": 3.0, "deepfool": 50.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=256, help="images in a batch")
    parser.add_argument("--few", type=int, default=8, help="images of torchattacks' DeepFool")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--compile", action="store_true", help="compile what PGD attacks")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("skipped: no CUDA device here")
    device = torch.device(arguments.device)
    model = rlskit.convert(
        "timm:resnet50", defense="none", num_classes=10, in_chans=3, image_size=arguments.side
    ).to(device)
    generator = torch.Generator().manual_seed(0)
    side = arguments.side
    images = torch.rand(arguments.limit, 3, side, side, generator=generator).to(device)
    (draw,) = rlskit.draws(model, 1, seed=0, purpose="attacker")
    with torch.no_grad():
        labels = draw(images).argmax(1)
    ours = {
        "pgd": prepare("pgd", eps=EPS, step_size=EPS / 4, steps=STEPS, random_start=False),
        "deepfool": prepare("deepfool"),
    }
    theirs = {
        "pgd": torchattacks.PGD(draw, EPS, EPS / 4, STEPS, random_start=False),
        "deepfool": torchattacks.DeepFool(draw),
    }
    laid_out = images.contiguous(memory_format=torch.channels_last)
    for name, attack in ours.items():
        compiled = arguments.compile and name == "pgd"
        view = attackers_view(model, "transfer", 1, seed=0, repeat=0, compiled=compiled)
        few = arguments.limit if name == "pgd" else min(arguments.few, arguments.limit)
        peer = theirs[name]

        def run(attack=attack, view=view) -> Tensor:  # type: ignore[no-untyped-def]
            found: Tensor = attack(view, laid_out, labels, generator=torch.Generator())
            return found

        def run_peer(peer=peer, few=few) -> Tensor:  # type: ignore[no-untyped-def]
            found: Tensor = peer(images[:few], labels[:few])
            return found

        fast = arguments.limit / seconds_of(run, device)
        slow = few / seconds_of(run_peer, device)
        print(
            f"{name}: {fast:.1f} images/s, torchattacks {slow:.1f}: {fast / slow:.2f} x "
            f"(target >= {TARGETS[name]:.0f} on a GPU)",
            flush=True,
        )


if __name__ == "__main__":
    main()
