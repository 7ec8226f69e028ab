"""What a training step costs that several processes share, and what it sends.

    python tests/benchmarks/ranks.py                               # one process
    torchrun --nproc-per-node 2 tests/benchmarks/ranks.py          # the same batch, shared by two

ResNet-20 as RLS (M = 2, K = 3) on 128 images of 32 pixels a step. Images by the clock, and
processor seconds of all processes together, which a busy machine does not change much: how they
grow is what sharing costs. What is sent is counted for ResNet-50, over the plans of 1,000 steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import rlskit
from rlskit.data import load
from rlskit.defenses import defense_of
from rlskit.models.banks import BankedModel
from rlskit.models.layout import layout_of, to_layout
from rlskit.runtime.devices import choose_device
from rlskit.runtime.together import together
from rlskit.training import TrainOptions
from rlskit.training.epochs import Run
from rlskit.training.kept import Files
from rlskit.training.ranks import Share

RESNET20 = f"{Path(__file__).resolve().parents[1] / 'cifar_resnet.py'}:resnet20"
SIZE = 128


def sent(model: BankedModel, steps: int = 1000) -> float:
    """Return the mean bytes of the gradients that a step moves, and so adds up."""
    generator, total = torch.Generator().manual_seed(0), 0
    tensors = dict(model.banks[0].named_parameters())
    sizes = [
        sum(tensors[name].nbytes for name in layer.tensors if name in tensors)
        for layer in model.partition.layers
    ]
    for _ in range(steps):
        group = defense_of(model).group(model, 3, generator)
        total += sum(
            size * len(set(banks.tolist())) for size, banks in zip(sizes, group.T, strict=True)
        )
    return total / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    with together() as ranks:
        model = rlskit.convert(
            RESNET20, defense="rls", banks=2, data="digits", in_chans=3, image_size=32
        ).to(choose_device())
        data = load("digits", "train", limit=SIZE).adapted(model.card.pixels, 10)
        run = Run(model, TrainOptions(batch_size=SIZE), data, Files(None), ranks=ranks)
        share = Share.of(SIZE, ranks.shard)
        images = data.images(range(SIZE))[share.mine].to(model.device)
        labels = data.labels[share.mine].to(model.device)
        plans = torch.Generator().manual_seed(0)
        to_layout(model, layout_of(model, training=True))
        model.train()
        for step in range(steps + 2):
            if step == 2:
                ranks.wait()
                began, used = time.perf_counter(), time.process_time()
            loss = float(run._step(images, labels, plans, share)[0])
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        total = sum(ranks.gathered(processor))
        if ranks.first:
            rate, each = steps * SIZE / seconds, 1000 * total / steps / SIZE
            print(f"{ranks.shard.count} processes: {rate:.0f} images/s by the clock, ", end="")
            print(f"{each:.2f} ms of processors an image, loss {loss:.4f}")
    if ranks.first:
        resnet50 = rlskit.convert(
            "resnet50", defense="rls", banks=2, in_chans=3, image_size=32, num_classes=10,
            small_images=True,
        )  # fmt: skip
        whole = 2 * sum(parameter.nbytes for parameter in resnet50.banks[0].parameters())
        print(
            f"ResNet-50, M = 2, K = 3: {sent(resnet50) / 1e6:.0f} MB a step, of {whole / 1e6:.0f}"
        )


if __name__ == "__main__":
    main()
