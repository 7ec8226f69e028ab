"""A result of nothing, for tests that need one."""

from __future__ import annotations

from typing import Any

from rlskit.results import Result
from rlskit.results.result import AttackFacts, CheckpointFacts, ImageFacts, ModelFacts, Timing
from rlskit.stats import Accuracy

ACCURACY = Accuracy(mean=0.75, std=None, ci95=(0.3, 0.95), n=4, lower_bound=0.25, ci95_repeats=None)

PGD = AttackFacts(
    method="pgd",
    engine="rlskit",
    params={"eps": 0.02, "steps": 10},
    stated={"eps": 0.02, "steps": 10},
    pixel_range="0:1",
    view="mean-prob",
    compiled=False,
)


def images(n: int) -> ImageFacts:
    return ImageFacts(name="digits", split="test", n=n, sha256="y")


def result(**fields: Any) -> Result:
    """A result with some fields changed."""
    defaults: dict[str, Any] = {
        "command": "attack",
        "checkpoint": CheckpointFacts(path=None, sha256="x"),
        "model": ModelFacts(architecture="own:tiny"),
        "defense": "rls",
        "data": images(4),
        "protocol": "multi",
        "n_attacked": 5,
        "n_samples": 10,
        "repeats": 1,
        "seed": 0,
        "batch_size": 128,
        "device": "cpu",
        "versions": {},
        "accuracy": {"clean": ACCURACY, "robust": ACCURACY},
        "attack": PGD,
        "timing": Timing(images_per_second=4.0, seconds=1.0, forwards=40.0, backwards=0.0),
    }
    return Result(**defaults | fields)
