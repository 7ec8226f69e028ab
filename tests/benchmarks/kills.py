"""Kill `rlskit train` at random moments until it ends: it ends with the bits of a whole one.

    python tests/benchmarks/kills.py [--kills 20] [--seed 0] [--epochs 8] [--save-every 3]

Each is the real command in a process of its own, in place, and is sent SIGKILL (three in four) or
SIGTERM at a moment that is uniform over a bit more than what is left of its way: while it starts,
within steps, while files are written. Some take as long as loading torch does.
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


def where() -> str:
    """Say what a killed training left."""
    state = Path("rls.unfinished.safetensors")
    if not state.exists():
        return "finished" if Path("rls.train.jsonl").exists() else "nothing kept yet"
    return "between its files" if list(Path().glob(".rlskit-*")) else "state kept"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--save-every", default="3")
    given = parser.parse_args()
    rng, left, codes = random.Random(given.seed), Counter[str](), Counter[int]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("net.py").write_text(NET, encoding="utf-8")
        convert = command("convert", "net.py:net", "--image-size", "8", "--data", "digits")
        subprocess.run(convert, check=True)
        train = command(
            "train", "--epochs", str(given.epochs), "--save-every", given.save_every,
            "--augment", "crop-flip", "--adversarial", "pgd", "--adversarial-steps", "3",
        )  # fmt: skip
        start = time.monotonic()
        subprocess.run([*train, "-o", "whole.safetensors"], check=True)
        took = time.monotonic() - start
        kills = finished = 0
        while kills < given.kills:
            with subprocess.Popen(train) as running:
                number = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
                try:
                    running.wait(rng.uniform(0.2, 0.9) * took)
                except subprocess.TimeoutExpired:
                    running.send_signal(number)
                running.wait()
            kills += running.returncode != 0
            codes[running.returncode] += 1
            left[where()] += 1
            if where() == "finished":
                finished += 1
                assert outcome("rls") == outcome("whole"), "other bits"
                for file in Path().glob("rls.*"):
                    file.unlink()
                subprocess.run(convert, check=True)
        if where() != "finished" and Path("rls.unfinished.safetensors").exists():
            subprocess.run(train, check=True)
            finished += 1
            assert outcome("rls") == outcome("whole"), "other bits"
        os.chdir("/")
    print(
        f"{kills} kills, {finished} trainings to the same bits; codes {dict(codes)}; {dict(left)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
