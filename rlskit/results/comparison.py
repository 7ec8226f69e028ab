"""What a comparison of two runs found, as Python and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlskit.results.result import Result

COMPARISON_SCHEMA = "rlskit.comparison/1"


@dataclass(frozen=True)
class Difference:
    """One accuracy of two runs on the same images; all shares lie in [0, 1].

    Attributes:
        a: The first run's: `mean`, `std`, `ci95`, ... as in `Result.accuracy`.
        b: The second run's.
        difference: Mean of B minus mean of A, in [-1, 1].
        ci95: Paired-bootstrap 95 % interval of the difference: images are resampled, each with all
            repeats of both runs.
        test: `mcnemar` with one repeat in both runs, else `sign-flip` on each image's means.
        only_a: Images that are right more often in A; with one repeat, right in A only.
        only_b: Images that are right more often in B.
        p_value: Two-sided, exact, of the test, in [0, 1].
    """

    a: dict[str, Any]
    b: dict[str, Any]
    difference: float
    ci95: tuple[float, float]
    test: str
    only_a: int
    only_b: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Pair:
    """Two results that answer the same question, one of each run.

    Attributes:
        a: Of the first run.
        b: Of the second run.
        differences: `clean` and `robust`, as far as they were scored.
    """

    a: Result
    b: Result
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Two runs, image by image.

    Attributes:
        paths: The folders of the first run, A, and the second, B.
        pairs: At least one.
        left_out: The results without a partner, and why, for people.
        seed: The bootstrap's.
        resamples: Of the bootstrap.
    """

    paths: tuple[str, str]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    seed: int
    resamples: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know about either run before using the numbers."""
        found = [f"A: {warning}" for pair in self.pairs for warning in pair.a.warnings]
        found += [f"B: {warning}" for pair in self.pairs for warning in pair.b.warnings]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        first = self.pairs[0]
        return {
            "schema": COMPARISON_SCHEMA,
            "a": _run(self.paths[0], first.a),
            "b": _run(self.paths[1], first.b),
            "data": first.a.data,
            "protocol": first.a.protocol,
            "n_attacked": first.a.n_attacked,
            "per_example": first.a.per_example,
            "seed": self.seed,
            "resamples": self.resamples,
            "pairs": [
                {
                    "attack": pair.a.attack,
                    "accuracy": {name: one.to_json() for name, one in pair.differences.items()},
                }
                for pair in self.pairs
            ],
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
        }


def _run(path: str, result: Result) -> dict[str, Any]:
    """Return what is the same for all results of a run, and may differ between the two."""
    names = ("checkpoint", "model", "defense", "n_samples", "repeats", "seed")
    return {"path": path, **{name: getattr(result, name) for name in names}}
