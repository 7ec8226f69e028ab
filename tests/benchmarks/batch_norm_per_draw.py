"""Would RLS gain if every draw had BatchNorm statistics of its own, not those of its banks?

    python tests/benchmarks/batch_norm_per_draw.py rls.safetensors [...]

Prints for each checkpoint, with the statistics that it has and with ones taken anew from the
training images for every sampled model, the accuracy of the mean of ten sampled models on clean
images and on those of PGD-10 on another one (the paper's test, `transfer n=1`), over three views.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import rlskit
from rlskit.attacks import prepare
from rlskit.models.banks import BankedModel

DRAWS, VIEWS, BATCH = 10, 3, 128


@torch.no_grad()
def with_own_statistics(draw: nn.Module, images: Tensor) -> nn.Module:
    """Give a sampled model the mean statistics of its own activations."""
    norms = [module for module in draw.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # others share the tensors that it has
        norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
        norm.num_batches_tracked = torch.tensor(0)
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    for part in torch.split(images, BATCH):
        draw(part)
    return draw.eval()


def accuracies(model: BankedModel, own: bool, eps: float) -> tuple[float, float]:
    """Return clean and robust accuracy in percent, means over the views."""
    card = model.card
    train, test = (
        rlskit.load_data(card.default_data(), split).adapted(card.pixels, card.classes, card.names)
        for split in ("train", "test")
    )
    seen, images = (data.images(range(len(data))) for data in (train, test))
    attack = prepare("pgd", eps=eps)
    right, left = [], []
    for view in range(VIEWS):
        generator = torch.Generator().manual_seed(view)
        shape = (DRAWS + 1, model.num_layers)
        plans = torch.randint(model.num_banks, shape, generator=generator)
        nets: list[nn.Module] = [model.sampled(plan).eval() for plan in plans]
        if own:
            nets = [with_own_statistics(net, seen) for net in nets]
        found = attack(nets[0], images, test.labels, generator=generator)
        with torch.no_grad():
            clean, attacked = (
                torch.stack([net(x).softmax(1) for net in nets[1:]]).mean(0).argmax(1)
                for x in (images, found)
            )
        right.append((clean == test.labels).float().mean())
        left.append(((clean == test.labels) & (attacked == test.labels)).float().mean())
    return 100 * float(torch.stack(right).mean()), 100 * float(torch.stack(left).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--eps", type=float, default=0.1)
    arguments = parser.parse_args()
    for path in arguments.checkpoints:
        model = rlskit.load(path)
        for own, name in ((False, "of its banks"), (True, "of its own")):
            clean, robust = accuracies(model.eval(), own, arguments.eps)
            print(
                f"{path}: statistics {name}: clean {clean:.1f}, transfer {robust:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
