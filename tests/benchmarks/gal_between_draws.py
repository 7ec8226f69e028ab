"""Would RLS gain if its sampled models were trained to have gradients that differ, as GAL's are?

    python tests/benchmarks/gal_between_draws.py [--granularity layer] [--seeds 0 1 2]

Trains the demo's RLS on digits, on the mean prediction of K = 3 sampled models and GAL's alignment
between them (`rlskit.defenses.gal`), and prints for each seed what is left of clean images, under
PGD-10 on another sampled model (the paper's test, `transfer n=1`) and under PGD-40 on the
expectation.
"""

from __future__ import annotations

import argparse
import dataclasses

from torch import Tensor

import rlskit
from rlskit.defenses import gal
from rlskit.defenses.catalogue import DEFENSES
from rlskit.defenses.defense import Settings
from rlskit.models.banks import BankedModel


def between_draws(
    logits: Tensor, labels: Tensor, images: list[Tensor], settings: Settings
) -> Tensor:
    """GAL's term against a loss that is a mean, as RLS's is, and not a sum over members."""
    return gal.penalty(logits, labels, images, {**settings, **gal.SETTINGS}) / len(logits)


def trained(granularity: str, seed: int) -> BankedModel:
    model = rlskit.convert("test_resnet", granularity=granularity, image_size=24, seed=seed)
    rlskit.train(model, "digits", epochs=20, batch_size=32, lr=0.1, schedule="cosine", seed=seed)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--granularity", default="layer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    DEFENSES["rls"] = dataclasses.replace(DEFENSES["rls"], penalty=between_draws)
    few = rlskit.load_data("digits", "test", limit=120)
    print("seed   clean  transfer n=1  PGD-40 eot n=10")
    for seed in options.seeds:
        model = trained(options.granularity, seed)
        paper = rlskit.attack(model, "digits", eps=0.1, repeats=3).accuracy
        honest = rlskit.attack(
            model, few, eps=0.1, steps=40, step_size=0.01, protocol="eot", n_attacked=10
        ).accuracy
        print(
            f"{seed:4} {paper['clean'].mean:7.1%} {paper['robust'].mean:13.1%} "
            f"{honest['robust'].mean:16.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
