"""Partition every model of timm and torchvision, and say which cannot be and why.

    python tests/benchmarks/catalogue.py                  # all 1,451: some minutes on one thread
    python tests/benchmarks/catalogue.py --pattern 'vit*'

Nothing is computed: the networks live on the meta device, in the image size of their library and
with 10 classes. Exits with 1 when a model fails; an encoder, which has no classes to answer with,
is counted apart.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from rlskit.models import GRANULARITIES, list_models, resolve
from rlskit.models.building import build_on_meta, configure
from rlskit.models.outputs import HeadlessError
from rlskit.models.partition import partition
from rlskit.models.published import library_pixels
from rlskit.models.trace import tensor_names, trace

CLASSES = 10


def check(name: str) -> int:
    """Build and partition one model; return its number of layers.

    Raises:
        RequestError: rlskit refuses it.
        AssertionError: rlskit says something wrong of it.
    """
    pixels = library_pixels(resolve(name))
    shape = (pixels["channels"], pixels["height"], pixels["width"])
    architecture = configure(
        resolve(name), classes=CLASSES, channels=shape[0], image_size=shape[1:]
    )
    network = build_on_meta(architecture)
    assert set(tensor_names(network)) == set(network.state_dict()), "state_dict has other names"
    shown = trace(network, shape)
    assert shown.output[1] == CLASSES, f"it answers with {shown.output[1]} classes"
    counts = []
    for granularity in GRANULARITIES:
        parts = partition(network, shown, granularity)
        parts.check_covers(network)
        counts.append(len(parts.layers))
    assert counts == sorted(counts, reverse=True), f"coarser units are more: {counts}"
    assert counts[-1] == 1, f"{counts[-1]} models in one"
    return counts[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", default="*", help="glob, or part of a name")
    names = list_models(parser.parse_args().pattern)
    torch.set_num_threads(1)
    start, failures, headless = time.perf_counter(), 0, 0
    for done, name in enumerate(names, 1):
        try:
            check(name)
        except HeadlessError as error:
            headless += 1
            print(f"no head  {name}: {error}")
        except Exception as error:  # whatever it is, the next model is to be tried
            failures += 1
            print(f"FAILED   {name}: {type(error).__name__}: {' '.join(str(error).split())}")
        if sys.stderr.isatty():
            print(f"{done}/{len(names)}", end="\r", file=sys.stderr)
    seconds = time.perf_counter() - start
    fine = len(names) - failures - headless
    print(
        f"{len(names)} models: {fine} partitioned, {headless} without a classification head, "
        f"{failures} failed; {seconds:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
