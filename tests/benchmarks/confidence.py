r"""Does confidence, or a squashed answer, make a network look robust? It should change no number.

    python tests/benchmarks/confidence.py --methods pgd,deepfool     # two minutes, one thread
    python tests/benchmarks/confidence.py --methods adaptive,cw --limit 12 --eps 0.5/255

Prints the robust accuracy of the published ResNet-20 as it is, with its logits times 10, 100 and
1000, and behind a softmax or sigmoid, or why there is none, under rlskit's own defaults and the
budget given. Needs shared/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import rlskit
from peers import lossless_images, stock_model

VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda z: z,
    "logits x 10": lambda z: 10 * z,
    "logits x 100 (temperature 0.01)": lambda z: z / 0.01,
    "logits x 1000": lambda z: 1000 * z,
    "sigmoid": torch.sigmoid,
    "softmax": lambda z: z.softmax(1),
    "softmax of logits x 10": lambda z: (10 * z).softmax(1),
    "bfloat16 logits": lambda z: z.bfloat16(),
}
"""Name -> what stands behind the network's logits."""


class Variant(nn.Module):
    """The published network with something behind its logits."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.last = stock_model(), last

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, 32, 32]` in [0, 1] to what stands behind the logits."""
        return self.last(self.network(images))


def robust(variant: str, method: str, eps: str, data: tuple[Tensor, Tensor]) -> str:
    """Return the robust accuracy in percent, or the sentence in its place."""
    module = Variant(VARIANTS[variant])
    options: dict[str, Any] = {} if method in ("cw", "deepfool") else {"eps": eps}
    try:
        if method == "adaptive":
            result = rlskit.attack_adaptively(module, data, **options)
        else:
            result = rlskit.attack(module, data, method=method, **options)
    except rlskit.UntrustedError as error:
        return f"exit 4: {error}"
    return f"{100 * result.accuracy['robust'].mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="pgd,deepfool")
    parser.add_argument("--eps", default="1/255")
    parser.add_argument("--limit", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = lossless_images(arguments.limit)
    for method in arguments.methods.split(","):
        for variant in VARIANTS:
            found = robust(variant, method, arguments.eps, data)
            print(f"{method:10} {variant:32} {found}", flush=True)


if __name__ == "__main__":
    main()
