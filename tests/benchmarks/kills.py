"""Kill `rlskit train` at random moments until it ends: it ends with the bits of a whole one.

    python tests/benchmarks/kills.py [--kills 20] [--seed 0] [--epochs 8] [--save-every 3]

Each is the real command in a process of its own, in place, and is sent SIGKILL (three in four) or
SIGTERM: one in four while it starts, the others at a moment that is uniform over the second and a
half after it first kept its state: within steps, while files are written, when it is finished. What
is killed goes on; what is finished is compared, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
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
