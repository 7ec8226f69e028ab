"""What an audit found, as Python and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

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
    measured: float | None
    unit: str
    threshold: float
    verdict: str
    detail: str
    meaning: str


@dataclass(frozen=True)
class AuditResult:
    """The audit of one model under one attack.

    Attributes:
        checkpoint: `path` (None for a model in memory) and `sha256` of the tensors, if any.
        model: At least its `architecture`.
        defense: Its name; `own` for a module that rlskit did not build.
        data: `name`, `split`, `n` and `sha256`.
        attack: The attack under audit: `method` and `params`, in [0, 1] units.
        protocol: The attacker's view.
        n_attacked: Draws in the attacker's view.
        n_samples: Draws that answer together.
        seed: All randomness derives from it.
        device: Where it ran.
        versions: Of the libraries that a number depends on.
        accuracy: `clean` and `robust` (under the attack): `mean`, `ci95`, `n`, ...; in [0, 1].
        checks: In the order of their names.
        warnings: What a reader must know first.
    """

    checkpoint: dict[str, Any]
    model: dict[str, Any]
    defense: str
    data: dict[str, Any]
    attack: dict[str, Any]
    protocol: str
    n_attacked: int
    n_samples: int
    seed: int
    device: str
    versions: dict[str, str]
    accuracy: dict[str, dict[str, Any] | None]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...] = ()

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
        fields = asdict(self)
        fields["checks"] = list(fields["checks"])
        fields["warnings"] = list(self.warnings)
        return {"schema": SCHEMA, "passed": self.passed, **fields}


def finite(value: float) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
