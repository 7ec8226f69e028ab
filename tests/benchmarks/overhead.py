"""What an evaluation costs beside forwards and backwards: processor time, memory, and the start.

    OMP_NUM_THREADS=1 python tests/benchmarks/overhead.py [--kinds KIND...] [--images N...]

Each line is a process of its own, on a LeNet and 32 x 32 images; the last word says whether the
target is met. Times are of the processor, so that neighbours do not count, but for the one called
wall. The first run of a process loads libraries, and is told apart. A pass is all within the
outermost call of a module or of autograd: what is left is reading, drawing, stepping, projecting,
scoring, writing and the end of a run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("eval", "pgd", "saved")
MOST_BESIDE, MEBIBYTE = 0.10, 2**20


class Stopwatch:
    """Adds up the processor time of the outermost calls of what it is put around."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start
                self._inside = False

        return timed


def peak() -> float:
    """Return the most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model() -> Any:
    import rlskit

    here = Path(__file__).parents[1] / "classics.py"
    return rlskit.convert(f"{here}:LeNet", banks=2, data="digits", image_size=32, outputs="logits")


def images(count: int) -> Any:
    """Noise with labels: what the images show costs nothing."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return noise, torch.arange(count) % 10


def measured(kind: str, count: int) -> dict[str, float]:
    """Do a run, and return its processor time, that of its passes, and the growth of memory.

    A run of one image goes before, in which libraries are loaded: `first` is what it takes.
    """
    import torch

    import rlskit
    from rlskit.data import Data
    from rlskit.data.arrays import ArrayImages

    passes, network = Stopwatch(), model()
    torch.nn.Module.__call__ = passes.around(torch.nn.Module.__call__)  # type: ignore[method-assign]
    torch.autograd.grad = passes.around(torch.autograd.grad)

    some = {n: images(n) for n in (1, count)}

    def run(count: int) -> float:
        pixels, labels = some[count]
        data = Data("noise", "test", tuple("0123456789"), labels, ArrayImages("noise", pixels))
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"n_samples": 10, "out": Path(folder) / "run"}
            if kind == "eval":
                rlskit.evaluate(network, data, **options)
            else:
                options |= {"save_adversarial": kind == "saved", "eps": 0.1, "steps": 10}
                rlskit.attack(network, data, method="pgd", **options)
        return time.process_time() - start

    first, before, passes.seconds = run(1), peak(), 0.0
    seconds = run(count)
    return {
        "first": first, "seconds": seconds, "passes": passes.seconds, "growth": peak() - before,
    }  # fmt: skip


def started(kind: str, path: str) -> dict[str, float]:
    """Read images as an evaluation does before its first block; return time and memory."""
    from rlskit.data import load

    pixels = model().card.pixels
    before, wall, start = peak(), time.perf_counter(), time.process_time()
    data = load(path, "test").adapted(pixels, 10)
    len(data.sha256), data.alterations
    seconds = time.process_time() - start
    return {"seconds": seconds, "wall": time.perf_counter() - wall, "growth": peak() - before}


def child(*arguments: str) -> dict[str, float]:
    """Do one measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def drawn() -> dict[str, float]:
    """Return the milliseconds that a draw takes, the best of many, by network."""
    from rls import Case

    from rlskit.defenses import draws

    models = {"LeNet": model()}
    models |= {name: Case(name, "layer").model for name in ("ResNet-20", "ResNet-50")}
    best = dict.fromkeys(models, float("inf"))
    for index in range(50):
        for name, one in models.items():
            start = time.process_time()
            draws(one, 1, seed=0, purpose="attacker", first=index)
            best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best


def files_in(folder: Path, count: int) -> None:
    """Write that many small PNG files, ten classes of them."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / "test" / str(label)).mkdir(parents=True)
    for i in range(count):
        array = rng.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(array).save(folder / "test" / str(i % 10) / f"{i}.png")


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def runs(kinds: Sequence[str], counts: Sequence[int]) -> None:
    for kind in kinds:
        found = {count: child(kind, str(count)) for count in counts}
        for count, one in found.items():
            share = 1 - one["passes"] / one["seconds"]
            print(
                f"{kind:6} {count:7,} images  first {one['first']:.1f} s, then "
                f"{one['seconds']:.1f} s, {share:.1%} beside passes, "
                f"memory +{one['growth']:.0f} MiB  {verdict(share < MOST_BESIDE)}", flush=True,
            )  # fmt: skip
        *_, few, many = 0, *sorted(counts)  # the first thousands are warm-up
        if few:
            more = (found[many]["growth"] - found[few]["growth"]) * MEBIBYTE / (many - few)
            # an image itself has 1,024 and as an adversarial one 4,096
            print(f"{kind:6} memory per further image: {more:.0f} bytes  {verdict(more < 500)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000, 20000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--npz", type=int, default=300, metavar="MIB")
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        kind, what = options.child
        if kind == "draws":
            print(json.dumps(drawn()))
            return
        found = measured(kind, int(what)) if kind in KINDS else started(kind, what)
        print(json.dumps(found))
        return
    drawing = ", ".join(f"{name} {ms:.2f} ms" for name, ms in child("draws", "").items())
    print(f"a draw {drawing}", flush=True)
    runs(options.kinds, options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = options.npz * MEBIBYTE // 32**2
        for layout, shape in (("NCHW", (side, 1, 32, 32)), ("NHWC", (side, 32, 32, 1))):
            file = folder / f"{layout}.npz"
            np.savez(file, x_test=np.zeros(shape, np.uint8), y_test=np.arange(side) % 10)
            one = child("npz", f"npz:{file}")
            met = one["growth"] < 1.1 * options.npz
            print(
                f"npz    {options.npz} MiB {layout}  {one['seconds']:.1f} s  memory "
                f"+{one['growth']:.0f} MiB  {verdict(met)}", flush=True,
            )  # fmt: skip
            file.unlink()
        files_in(folder, options.files)
        one = child("folder", f"folder:{folder}")
        print(
            f"folder {options.files:,} files  {one['seconds']:.1f} s, wall {one['wall']:.1f} s  "
            f"memory +{one['growth']:.0f} MiB  {verdict(one['seconds'] < 5)}"
        )


if __name__ == "__main__":
    main()
