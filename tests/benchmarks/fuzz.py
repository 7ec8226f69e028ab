"""Read files that anyone may have changed: each is read, or refused by a sentence, and soon.

    python tests/benchmarks/fuzz.py [--count 10000] [--seed 0] [--only checkpoint ...]

One in two has its bytes damaged. The other one has one place of what it says of itself changed and,
where it has a seal, a new seal, as whoever changes a file on purpose would give it. Each kind is
read in a process of its own, which may hold 1 GB more than it began with; the row says how many
were read and refused, the longest reading in seconds of the processor, the memory, and what ended
otherwise.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import multiprocessing
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import rlskit
import small_models
from mutations import changed, damaged
from rlskit import recipes
from rlskit.cli.recipe import check
from rlskit.data import load
from rlskit.data.adversarial_file import read_adversarial
from rlskit.errors import RlskitError
from rlskit.models import checkpoint
from rlskit.models.weightfile import read_content
from rlskit.results import read_results
from rlskit.results.journal import BLOCK
from rlskit.storage.sealed import read_sealed, write_sealed
from test_mutations import RECIPE

SECONDS, GIGABYTE = 5, 2**30


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: Writes a whole one into a folder, and returns its path.
        read: Reads one.
        forge: Returns the bytes of one that says something else of itself; None where it says
            nothing.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    forge: Callable[[Path, random.Random], bytes] | None = None


def attacked(folder: Path) -> Path:
    """A finished run on a few digits."""
    run = folder / "run"
    rlskit.attack(
        small_models.model(trained=False), small_models.digits(12), method="fgsm", eps=0.1, out=run,
        save_adversarial=True,
    )  # fmt: skip
    return run


def a_checkpoint(folder: Path) -> Path:
    model = rlskit.convert("test_resnet", image_size=24)
    checkpoint.save(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def forged_checkpoint(path: Path, chance: random.Random) -> bytes:
    """One whose card is another; the sha256 is that of older versions, of the tensors alone."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    card = json.loads(header["__metadata__"]["rlskit"])
    card["sha256"] = checkpoint.fingerprint(rlskit_tensors(path))
    del card["sha256_of"]
    header["__metadata__"]["rlskit"] = changed(card, chance)
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + whole[8 + length :]


def rlskit_tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.stored_tensors(checkpoint.load(path))


def forged_sealed(path: Path, chance: random.Random) -> bytes:
    """One that claims something else under a new seal, or holds other tensors."""
    kind = json.loads(rlskit_header(path)["rlskit"])["format"]
    about, tensors = read_sealed(path, kind)
    if chance.random() < 0.3:
        name = chance.choice(list(tensors))
        tensors[name] = chance.choice(
            [tensors[name][:0], tensors[name][:3], tensors[name].double(), tensors[name] * 0 - 7,
             tensors[name].float() * float("nan"), torch.zeros(2, 2), torch.zeros(())]
        )  # fmt: skip
    else:
        about = json.loads(changed(about, chance))
    other = path.with_name("other.safetensors")
    write_sealed(other, tensors, about)
    return other.read_bytes()


def rlskit_header(path: Path) -> dict[str, str]:
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    metadata: dict[str, str] = json.loads(whole[8 : 8 + length])["__metadata__"]
    return metadata


def forged_json(path: Path, chance: random.Random) -> bytes:
    return changed(json.loads(path.read_text(encoding="utf-8")), chance).encode()


def a_recipe(folder: Path) -> Path:
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.toml"


def some_npz(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x_test=pixels, y_test=np.arange(20) % 4)
    return folder / "data.npz"


def forged_npz(path: Path, chance: random.Random) -> bytes:
    """One whose arrays are of other shapes, types and values."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive}
    name = chance.choice(list(arrays))
    arrays[name] = chance.choice(
        [arrays[name][:0], arrays[name].astype("float16"), arrays[name].astype(object),
         arrays[name].astype(complex), arrays[name] * np.nan, arrays[name].astype("U3"),
         np.array(3), arrays[name][..., None], arrays[name].astype("int64") - 2**62]
    )  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def some_weights(folder: Path) -> Path:
    torch.save({"state_dict": small_models.network(0).state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


KINDS = {
    "checkpoint": Kind(a_checkpoint, checkpoint.load, forged_checkpoint),
    "adversarial": Kind(
        lambda folder: attacked(folder) / "adversarial.safetensors", read_adversarial, forged_sealed
    ),
    "block": Kind(
        lambda folder: attacked(folder) / "blocks" / "0-0.safetensors",
        lambda path: read_sealed(path, BLOCK),
    ),
    "results": Kind(lambda folder: attacked(folder) / "results.json", read_results, forged_json),
    "recipe": Kind(
        a_recipe, lambda path: recipes.check_stages(recipes.load(path), path.parent / "out", check)
    ),
    "npz": Kind(some_npz, lambda path: load(f"npz:{path}", "test"), forged_npz),
    "weights": Kind(some_weights, read_content),
}


def fuzzed(name: str, count: int, seed: int, answer: Any) -> None:
    """Read so many changed files of a kind, in a process of its own; send how that went."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        whole = kind.make(Path(folder))
        data, file = whole.read_bytes(), whole.with_name(f"fuzzed{whole.suffix}")
        kind.read(whole)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        ends: Counter[str] = Counter()
        longest = 0.0
        for number in range(count):
            chance = random.Random(f"{seed} {name} {number}")
            forge = kind.forge if chance.random() < 0.5 else None
            file.write_bytes(forge(whole, chance) if forge else damaged(data, chance))
            faulthandler.dump_traceback_later(120, exit=True)  # also what waits
            start = time.process_time()
            try:
                kind.read(file)
                ends["read"] += 1
            except RlskitError:
                ends["refused"] += 1
            except Exception as error:  # what the benchmark is there to find
                ends[f"{type(error).__name__} in {number}: {error}"[:200]] += 1
            longest = max(longest, time.process_time() - start)
        faulthandler.cancel_dump_traceback_later()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send((ends, longest, after - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    good = True
    print("kind            read  refused  longest s  memory MB  otherwise", flush=True)
    for name in options.only:
        receive, send = spawn.Pipe(duplex=False)
        count = -(-options.count // len(options.only))
        process = spawn.Process(target=fuzzed, args=(name, count, options.seed, send))
        process.start()
        send.close()
        try:
            ends, longest, memory = receive.recv()
        except EOFError:
            process.join()
            print(f"{name:<14} ended with exit code {process.exitcode}")
            good = False
            continue
        process.join()
        other = [end for end in ends if end not in ("read", "refused")]
        good &= not other and longest < SECONDS and memory < GIGABYTE
        print(
            f"{name:<14} {ends['read']:5d} {ends['refused']:8d} {longest:10.2f} "
            f"{memory / 1e6:10.0f}  {len(other)}", *other[:10], sep="\n    ", flush=True,
        )  # fmt: skip
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
