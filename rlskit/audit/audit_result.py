"""What an audit found, as Python and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlskit.documents import Count, Number, Value, to_json
from rlskit.results.result import CheckpointFacts, ImageFacts, ModelFacts
from rlskit.results.words import called, draws_known
from rlskit.stats import Accuracy

SCHEMA = "rlskit.audit/1"

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
"""The verdicts."""


@dataclass(frozen=True)
class Check:
    """One check and its verdict.

    Attributes:
        name: `M1` to `M13`.
        title: What should hold.
        measured: The measurement in `unit`; None where it was not made or is not finite.
        unit: Of the measurement and the threshold: `points` of accuracy, `%`, `images`, `cosine` or
            `logits`.
        threshold: The measurement beyond which the check fails, if chance does not explain it.
        verdict: `pass`, `fail` or `skipped`.
        detail: The numbers behind the measurement, or why there is none.
        meaning: What the verdict says of the attack's result, and what to do.
    """

    name: str
    title: str
    measured: Number | None
    unit: str
    threshold: Number
    verdict: str
    detail: str
    meaning: str


@dataclass(frozen=True)
class AuditedAttack:
    """The attack under audit.

    Attributes:
        method: A key of `rlskit.attacks.ATTACKS`.
        params: Every option, in [0, 1] units.
    """

    method: str
    params: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The audit of one model under one attack.

    Attributes:
        checkpoint: Where the model came from.
        model: What it is.
        defense: Its name; `own` for a module that rlskit did not build.
        data: The images.
        attack: The attack under audit.
        protocol: The attacker's view.
        n_attacked: Draws in the attacker's view.
        n_samples: Draws that answer together.
        seed: All randomness derives from it.
        device: Where it ran.
        versions: Of the libraries that a number depends on.
        accuracy: `clean` and `robust` (under the attack); None where answers are NaN.
        checks: In the order of their names.
        warnings: What a reader must know first.
    """

    checkpoint: CheckpointFacts
    model: ModelFacts
    defense: str
    data: ImageFacts
    attack: AuditedAttack
    protocol: str
    n_attacked: Count
    n_samples: Count
    seed: int
    device: str
    versions: Mapping[str, str]
    accuracy: Mapping[str, Accuracy | None]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...] = ()

    @property
    def view(self) -> str:
        """The attacker's view for people: `white-box` where it is of every draw there is."""
        said = f"{self.protocol} n={self.n_attacked}"
        return called(said, self.n_attacked, draws_known(self.defense, self.model))

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.verdict == FAIL)

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {"schema": SCHEMA, "passed": self.passed, **to_json(self)}


def finite(value: float) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
