"""The audit of a column's own attack: a stage beside the cell's, and part of its verdicts.

[columns.linf]
attack = { method = "pgd", eps = "4/255" }
audit = true                                     or a table of `OWN`, such as { limit = 50 }
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlskit.audit import LIMIT, AuditResult
from rlskit.audit.audit_result import SKIPPED
from rlskit.documents import from_json
from rlskit.errors import RequestError, reason
from rlskit.recipes.noted import is_as_written
from rlskit.recipes.stages import AUDIT, Stage, not_left_out, option_text
from rlskit.results.reading import read_json
from rlskit.threat.adaptive import PROTOCOL as ADAPTIVE

OWN = ("limit", "points", "queries", "surrogate")
"""What the audit may be told besides: how much it looks at. The attack is the column's."""

TAKEN = (
    "batch-size", "classes", "data", "data-dir", "device", "download", "eps", "expect-clean",
    "limit", "loss", "method", "model", "n-attacked", "n-samples", "pixel-range", "protocol",
    "restarts", "seed", "skip-bad", "split", "step-size", "steps",
)  # fmt: skip
"""Options of `attack` that `audit` takes as well."""

_ASIDE = ("compile", "fail-under", "num-workers", "per-image", "repeats", "save-adversarial")
"""Options of `attack` that leave the attack as it is."""

_ALIKE = {
    "engine": "rlskit", "norm": "linf", "precision": "fp32", "risk": "mean", "view": "mean-prob",
}  # fmt: skip
"""What every audited attack has, so that saying it changes nothing."""


def audit_of(cell: Stage, asked: Any, where: str) -> Stage:
    """Return the stage that audits a cell's attack.

    Args:
        cell: The stage of the attack.
        asked: True, or a table of `OWN`.
        where: What the column is called in messages.

    Raises:
        RequestError: What the cell measures cannot be audited, or the table holds something else.
    """
    if asked is not True and not isinstance(asked, Mapping):
        raise RequestError(f"{where}: audit is true, or a table of {', '.join(OWN)}, not {asked!r}")
    more = {} if asked is True else dict(asked)
    if unknown := [name for name in more if name not in OWN]:
        raise RequestError(
            f"{where}: audit takes {', '.join(OWN)}, not {unknown[0]}: the attack is the column's"
        )
    stated = not_left_out(cell.options)
    _check_auditable(cell, stated, where)
    options = {name: value for name, value in stated.items() if name in TAKEN}
    if not str(options.get("limit", "")).isdecimal() or int(options["limit"]) > LIMIT:
        options["limit"] = str(LIMIT)
    options |= {name: option_text(AUDIT, name, value) for name, value in more.items()}
    return Stage(f"{cell.name}/{AUDIT}", AUDIT, options, cell.needs, cell.checkpoint)


def read_audit(stage: Stage, folder: Path) -> AuditResult:
    """Return what a finished audit found.

    Raises:
        RequestError: Its file is not there, damaged, or not as the audit wrote it.
    """
    file = folder / stage.output
    if not is_as_written(stage, folder):
        raise RequestError(f"{file} was changed since the audit wrote it; remove it")
    try:
        return from_json(read_json(file), AuditResult)
    except ValueError as error:
        raise RequestError(f"{file} is damaged ({reason(error)}); remove it") from error


def forget_audits(stages: Iterable[Stage], folder: Path) -> None:
    """Remove audits of earlier runs that are asked for no longer: reports would show them.

    Args:
        stages: Of the recipe.
        folder: Of the run.
    """
    asked = {stage.name for stage in stages}
    for note in (folder / "stages").glob(f"*.*.{AUDIT}.json"):
        name = note.stem.replace(".", "/")  # which no row's and no column's name holds
        if name not in asked:
            (folder / name).with_suffix(".json").unlink(missing_ok=True)
            note.unlink()


def audit_sentence(found: AuditResult) -> str:
    """Return what an audit found, for people: the checks that failed, or how many there were."""
    if not found.passed:
        failed = ", ".join(f"{name} ({found[name].title})" for name in found.failed)
        return f"audit failed: not so: {failed}"
    skipped = sum(check.verdict == SKIPPED for check in found.checks)
    return f"audit passed: {len(found.checks) - skipped} checks hold, {skipped} skipped"


def _check_auditable(cell: Stage, stated: Mapping[str, Any], where: str) -> None:
    """Require an attack that is all told by what `rlskit audit` takes.

    Raises:
        RequestError: It is not.
    """
    if cell.command != "attack":
        raise RequestError(f"{where}: an audit is of an attack, and this column is {cell.command}")
    if stated.get("protocol") == ADAPTIVE:
        raise RequestError(
            f"{where}: an audit is of one attack, and the protocol {ADAPTIVE} is many; audit a "
            "column of its own, as of pgd"
        )
    for name, value in stated.items():
        if name not in (*TAKEN, *_ASIDE) and _ALIKE.get(name) != value:
            raise RequestError(
                f"{where}: an audit knows no {name}, so it would be of another attack; leave "
                f"{name} or audit out"
            )
