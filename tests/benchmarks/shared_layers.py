"""How much of an attack on one sampled model carries over, by the layers that another one shares.

    python tests/benchmarks/shared_layers.py CHECKPOINT... [--eps 0.1] [--plans 60] [--attacked 6]

PGD as in section 4.2 of the paper (10 steps of eps/10) on some sampled models; a row says what
share of its images, of those that the scored model gets right when clean, fools models that share
so many of their L layers with the attacked one. Members of an ensemble share all or nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict

import torch

import rlskit
from rlskit import seeds
from rlskit.attacks.pgd import pgd


def plans(banks: int, layers: int, count: int) -> list[tuple[int, ...]]:
    """Return as many different plans as asked for, or all."""
    if banks**layers <= count:
        return list(itertools.product(range(banks), repeat=layers))
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        plan = torch.randint(banks, (layers,), generator=generator)
        found[tuple(plan.tolist())] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--attacked", type=int, default=6)
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for path in options.checkpoints:
        model = rlskit.load(path)
        card = model.card
        data = rlskit.load_data(card.default_data(), "test", limit=options.limit)
        data = data.adapted(card.pixels, card.classes, card.names)
        images, labels = data.images(range(len(data))), data.labels
        chosen = plans(model.num_banks, model.num_layers, options.plans)
        nets = {plan: model.sampled(torch.tensor(plan)).eval() for plan in chosen}
        with torch.no_grad():
            right = {plan: net(images).argmax(-1) == labels for plan, net in nets.items()}
        shares = defaultdict(list)
        for plan in chosen[: options.attacked]:
            generator = seeds.generator(0, seeds.Purpose.ATTACK, 0)
            changed = pgd(nets[plan], images, labels, eps=options.eps, generator=generator)
            for other, net in nets.items():
                with torch.no_grad():
                    fooled = (net(changed).argmax(-1) != labels) & right[other]
                shared = sum(a == b for a, b in zip(plan, other, strict=True))
                shares[shared].append(float(fooled.sum() / right[other].sum()))
        print(f"{path}: {model.num_banks} banks, {model.num_layers} layers", flush=True)
        for shared, found in sorted(shares.items()):
            mean = sum(found) / len(found)
            print(f"  {shared:3d} shared: {100 * mean:5.1f} % fooled ({len(found)} pairs)")


if __name__ == "__main__":
    main()
