"""The result of an evaluation: one object, stable and versioned, as Python and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "rlskit.result/1"

HEADLINES = ("withstood", "robust", "clean")
"""Accuracies that a gate may decide on, the first that there is."""


@dataclass(frozen=True)
class Result:
    """What one evaluation found; `to_json` gives the object of the design, section 7.

    Attributes:
        command: `attack`, `eval` or `diversity`.
        checkpoint: `path` (None for a model in memory) and `sha256` of the tensors.
        model: Architecture, banks, layers, granularity, and whether it was ever trained.
        defense: Its name.
        data: `name`, `split`, `n` and `sha256`.
        protocol: The attacker's view; `clean` without an attack.
        n_samples: N, the draws that answered together.
        repeats: R.
        seed: The seed that all randomness derives from.
        batch_size: Size of a block.
        device: Where it ran.
        versions: Of rlskit, torch and the attack's library.
        accuracy: Name -> `mean`, `std` over repeats, `ci95` over images, `n`, `lower_bound`,
            `ci95_repeats` (Student's t interval over repeats, None for one); all in [0, 1].
            `n` is the denominator; see `rlskit.results.summary` for those of targeted attacks.
        attack: `method`, `engine` and `params` in both pixel scales; None without an attack.
        n_attacked: Draws in the attacker's view; None without an attack.
        perturbation: l0, l1, l2, linf -> `median` and `max`, in [0, 1] units.
        agreement: Diversity measures -> `mean` and `std` over repeats, `ci95` over images (by the
            bootstrap; None where there is none).
        transfer: Matrices between draws, row i attacked and column j scored: `cosine` and
            `transferability`, the `images` behind the latter, `zero_gradients`, `off_diagonal`
            means, `attack`.
        timing: `seconds`, `images_per_second`, `forwards`, `backwards`; images x draws.
        per_image: File name of the per-image table in the run's folder, or None.
        per_example: Whether each image had draws of its own.
        warnings: What a reader must know before using the numbers.
        gate: `threshold` (of `--fail-under`), `bound` and `verdict` (`met` or `not met`); None
            where none was set.
    """

    command: str
    checkpoint: dict[str, Any]
    model: dict[str, Any]
    defense: str
    data: dict[str, Any]
    protocol: str
    n_samples: int
    repeats: int
    seed: int
    batch_size: int
    device: str
    versions: dict[str, str]
    accuracy: dict[str, dict[str, Any]]
    attack: dict[str, Any] | None = None
    n_attacked: int | None = None
    perturbation: dict[str, dict[str, float]] | None = None
    agreement: dict[str, dict[str, Any]] | None = None
    transfer: dict[str, Any] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    per_image: str | None = None
    per_example: bool = False
    warnings: tuple[str, ...] = ()
    gate: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; NaN becomes null."""
        return {"schema": SCHEMA, **_without_nan(asdict(self))}

    @property
    def headline(self) -> dict[str, Any]:
        """The accuracy that a gate decides on: robust where there is one, else clean.

        Of a targeted attack it is that on the images that could be attacked at all.
        """
        return next((self.accuracy[name] for name in HEADLINES if name in self.accuracy), {})


def dump(results: list[Result]) -> str:
    """Return one JSON object, or a list of them when there are several results."""
    objects = [result.to_json() for result in results]
    return (
        json.dumps(objects[0] if len(objects) == 1 else objects, indent=2, allow_nan=False) + "\n"
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
