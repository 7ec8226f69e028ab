"""Kill rlskit at random moments until it ends: it ends with the bits of a whole command.

    python tests/benchmarks/kills.py [--kills 20] [--seed 0] [--epochs 8] [--save-every 3]
    python tests/benchmarks/kills.py attack eval audit diversity run [--kills 20] [--shards 3]

Each is the real command in a process of its own, and is sent SIGKILL (three in four) or SIGTERM.

A command that measures is killed at a moment that is uniform over what a whole one takes, until it
has ended; then the next one begins. With shards each of them is killed so, in any order, and then
what makes their result: `merge`, or the command itself. A training is done in place, and killed one
time in four while it starts, the others at a moment that is uniform over the second and a half
after it first kept its state: within steps, while files are written, when it is finished. What is
killed goes on; what is finished is compared, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

NET = """
from torch import nn

def net(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(512, num_classes),
    )
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlskit", *arguments, "-q"]


def outcome(name: str) -> list[object]:
    """The bytes of both files, and the log but for its times."""
    times = dict.fromkeys(("seconds", "images_per_second"))
    lines = Path(f"{name}.train.jsonl").read_text(encoding="utf-8").splitlines()
    weights = [Path(f"{name}{kind}.safetensors").read_bytes() for kind in ("", ".best")]
    return [*weights, [json.loads(line) | times for line in lines]]


def kept() -> int:
    """When the state was kept last; 0 without one."""
    try:
        return Path("rls.unfinished.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def kill(running: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kill a training at a random moment; say what it did then."""
    before, starting = kept(), rng.random() < 0.25
    while not starting and kept() == before and running.poll() is None:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 1.5))
    running.send_signal(rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
    if running.wait() == 0:
        return "had ended"
    if list(Path().glob(".rlskit-*")):
        return "wrote a file"
    return "trained" if kept() != before else "started"


MEASURING = {
    "attack": (
        "attack --eps 0.1 --steps 40 --method pgd,fgsm --limit 400 --batch-size 20 "
        "--save-adversarial --out out --force"
    ),
    "eval": "eval --n-samples 1,10 --repeats 20 --limit 400 --batch-size 20 --out out",
    "audit": "audit --eps 0.1 --json out/audit.json",
    "diversity": "diversity --transfer --n-samples 4 --repeats 4 --batch-size 20 --out out",
    "run": "run recipe.toml --trust --out out",
}
"""Command -> how it is called; each writes into `out`."""

RECIPE = """
title = "killed"

[all]
data = "digits"
limit = 200
batch-size = 20

[rows.given]
checkpoint = "rls.safetensors"

[rows.trained]
convert = { name = "net.py:net", image-size = 8 }
train = { epochs = 8, limit = 400, save-every = "3" }

[columns.pgd]
attack = { method = "pgd", eps = 0.1, steps = 40, save-adversarial = true }

[columns.kappa]
diversity = { repeats = 5 }
"""

TIMES = dict.fromkeys(("seconds", "images_per_second"))


def in_parts(name: str, shards: int) -> list[str]:
    """The lines of a command's shards, and last the one that ends it; without shards itself."""
    line = MEASURING[name]
    parts = [f"{line} --shard {i}/{shards}" for i in range(shards)]
    if name == "eval":  # whose shards have a folder each
        parts = [part.replace("--out out", f"--out parts/{i}") for i, part in enumerate(parts)]
        merge = " ".join(["merge", *(f"parts/{i}" for i in range(shards)), "--out out"])
    else:
        merge = "merge out"
    return [*parts, line if name in ("audit", "run") or not shards else merge]


def lasting(found: object) -> object:
    """A JSON value without what a clock says."""
    if isinstance(found, dict):
        return {key: None if key in TIMES else lasting(one) for key, one in found.items()}
    return [lasting(one) for one in found] if isinstance(found, list) else found


def measured() -> dict[str, object]:
    """All that a command wrote: results but for their times, and the bytes of the rest."""
    found: dict[str, object] = {}
    for file in sorted(Path("out").rglob("*.*")):
        if file.is_file() and file.name in ("results.json", "audit.json"):
            found[str(file)] = lasting(json.loads(file.read_text(encoding="utf-8")))
        elif file.name in ("per_image.csv", "adversarial.safetensors", "rls.safetensors"):
            found[str(file)] = file.read_bytes()
    return found


def empty() -> None:
    """Begin anew."""
    for folder in ("out", "parts"):
        shutil.rmtree(folder, ignore_errors=True)
    Path("out").mkdir()


def seconds_of(line: str) -> float:
    """Do a command that nobody kills."""
    start = time.monotonic()
    done = subprocess.run(command(*line.split()), stdout=subprocess.DEVNULL)
    assert done.returncode in (0, 4)
    return time.monotonic() - start


def ends(line: str, within: float, rng: random.Random) -> bool:
    """Do a command, and kill it at a random moment if it is still at it; say whether it ended."""
    with subprocess.Popen(
        command(*line.split()), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        if within:
            try:
                running.wait(rng.uniform(0, within))
            except subprocess.TimeoutExpired:
                running.send_signal(rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
        _, said = running.communicate()
    if running.returncode in (-signal.SIGKILL, -signal.SIGTERM, 143):
        return False
    assert running.returncode in (0, 4), said
    return True


def kill_measuring(name: str, shards: int, kills: int, rng: random.Random) -> str:
    """Kill a command, or its shards and what ends them, so often; say what was seen.

    Each time all have ended, what they wrote is compared.
    """
    empty()
    seconds_of(MEASURING[name])
    whole = measured()
    empty()
    lines = in_parts(name, shards)
    took = {line: seconds_of(line) for line in lines}
    *parts, ending = lines
    killed, same = Counter[str](), 0
    while killed["end"] < kills or (parts and killed["shards"] < kills):
        empty()
        left = parts.copy()
        while left:
            line = rng.choice(left)
            if ends(line, took[line] if killed["shards"] < kills else 0, rng):
                left.remove(line)
            else:
                killed["shards"] += 1
        while not ends(ending, took[ending] if killed["end"] < kills else 0, rng):
            killed["end"] += 1
            if measured() == whole and not list(Path("out").rglob("*.unfinished")):
                break  # it was killed when all was written
        assert measured() == whole, f"{name}: other bits"
        same += 1
    empty()
    times = ", ".join(f"{took[line]:.1f}" for line in lines)
    return f"{name}: kills {dict(killed)} over {times} s; {same} ended, all with the same bits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", choices=["train", *MEASURING], default="train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--save-every", default="3")
    given = parser.parse_args()
    rng, did = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("net.py").write_text(NET, encoding="utf-8")
        convert = command("convert", "net.py:net", "--image-size", "8", "--data", "digits")
        subprocess.run(convert, check=True)
        if given.commands != "train":
            learn = command("train", "--epochs", "4")
            subprocess.run(learn, check=True, stdout=subprocess.DEVNULL)
            Path("recipe.toml").write_text(RECIPE, encoding="utf-8")
            for name in given.commands:
                print(kill_measuring(name, given.shards, given.kills, rng), flush=True)
            os.chdir("/")
            return 0
        train = command(
            "train", "--epochs", str(given.epochs), "--save-every", given.save_every,
            "--augment", "crop-flip", "--adversarial", "pgd", "--adversarial-steps", "3",
        )  # fmt: skip
        subprocess.run([*train, "-o", "whole.safetensors"], check=True)
        whole, same = outcome("whole"), 0
        while did.total() - did["had ended"] < given.kills or kept():
            with subprocess.Popen(train) as running:
                if did.total() - did["had ended"] < given.kills:
                    did[kill(running, rng)] += 1
            if not kept() and Path("rls.train.jsonl").exists():
                assert outcome("rls") == whole, "other bits"
                same += 1
                for file in Path().glob("rls.*"):
                    file.unlink()
                subprocess.run(convert, check=True)
        os.chdir("/")
    print(f"killed when it {dict(did)}; {same} trainings ended with the same bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
