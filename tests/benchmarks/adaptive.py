r"""What the adaptive protocol costs beside its parts one after the other, and what that loses.

    rlskit run recipes/small/honest-mnist.toml --only 'rls/[ct]*'
    python tests/benchmarks/adaptive.py runs/small-honest-mnist/rls/rls.safetensors --eps 0.1 \
        --data mnist --data-dir ../shared/data            # 48 images: some five minutes, one thread

Prints forward and backward passes (images x draws) with and without early exit, their ratio beside
its target, and the accuracy that is left by 200 fresh draws in groups of ten.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

import rlskit
from rlskit.data import load
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits, mean_log_probabilities
from rlskit.models import BankedModel
from rlskit.threat.adaptive import prepare_adaptive

SCORING, N = 200, 10


@torch.no_grad()
def accuracy(model: BankedModel, images: Tensor, labels: Tensor) -> float:
    """Return the share that means of ten fresh draws get right, in percent."""
    scorers = draws(model, SCORING, seed=1, purpose="defender")
    groups = finite_logits(scorers, images).reshape(-1, N, len(images), model.card.classes)
    right = [mean_log_probabilities(group).argmax(-1) == labels for group in groups]
    return 100 * torch.stack(right).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--eps", required=True)
    parser.add_argument("--data")
    parser.add_argument("--data-dir")
    parser.add_argument("--limit", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = rlskit.load(arguments.checkpoint)
    data = load(
        arguments.data or model.card.default_data(), "test",
        data_dir=arguments.data_dir, limit=arguments.limit,
    ).adapted(model.card.pixels, model.card.classes)  # fmt: skip
    images, labels = data.images(range(len(data))), data.labels
    print(f"{len(data)} images of {data.name}, eps {arguments.eps}: clean", end=" ")
    print(f"{accuracy(model, images, labels):.1f} %")
    threat, costs = prepare_adaptive(model, eps=arguments.eps), []
    for early_exit in (False, True):
        protocol = dataclasses.replace(threat, early_exit=early_exit)
        crafted = protocol.craft(model, images, labels, seed=0, repeat=0)
        costs.append((crafted.forwards, crafted.backwards))
        print(
            f"{'with early exit' if early_exit else 'one after the other'}: "
            f"{crafted.forwards:,} forward and {crafted.backwards:,} backward passes, "
            f"{accuracy(model, crafted.images, labels):.1f} % left",
            flush=True,
        )
    whole, early = costs
    for what, a, b in zip(("forwards", "backwards"), early, whole, strict=True):
        print(f"{what}: {a / b:.2f} (target <= 0.5)")


if __name__ == "__main__":
    main()
