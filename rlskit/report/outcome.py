"""Whether a run passed: the verdicts of its gates in one list, for every kind of report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlskit.audit.audit_result import AuditResult
from rlskit.report.reported import Reported
from rlskit.results import NOT_MET, gate_sentence
from rlskit.results.verdict import FAIL, PASS, UNDECIDED, UNTRUSTED
from rlskit.results.words import attack_label

AUDIT = "audit"
"""The row of the judgements on audits."""

WORST_FIRST = (UNTRUSTED, FAIL, UNDECIDED, PASS)


@dataclass(frozen=True)
class Judgement:
    """What became of one gate.

    Attributes:
        row: The model.
        column: The measurement.
        name: What the gate is called, without the row.
        verdict: One of `WORST_FIRST`.
        sentence: The numbers.
    """

    row: str
    column: str
    name: str
    verdict: str
    sentence: str


def judgements(reported: Reported) -> tuple[Judgement, ...]:
    """Return what became of a recipe's gates, of those of single commands, and of audits."""
    found = [
        Judgement(one.row, one.column, f"{one.column} {one.asked}", one.verdict, one.sentence)
        for one in reported.verdicts
    ]
    for row in reported.rows:
        for cell in row.cells:
            for result in cell.results:
                if result.gate is not None:
                    verdict = FAIL if result.gate.verdict == NOT_MET else PASS
                    sentence = f"{row.name}/{cell.column}: {gate_sentence(result)}"
                    what = attack_label(result) if result.attack else f"N={result.n_samples}"
                    name = f"{cell.column} fail-under ({what})"
                    found.append(Judgement(row.name, cell.column, name, verdict, sentence))
    found += map(_of_audit, reported.audits)
    return tuple(found)


def _of_audit(audit: AuditResult) -> Judgement:
    """Return whether an audited attack works: if not, its number cannot be trusted."""
    what = f"{audit.attack.method}, {audit.view}"
    said = f"failed {', '.join(audit.failed)}" if audit.failed else "no check failed"
    sentence = f"audit of {audit.defense} under {what}: {said}"
    verdict = UNTRUSTED if audit.failed else PASS
    return Judgement(AUDIT, what, f"audit of {what}", verdict, sentence)


def overall(found: Sequence[Judgement]) -> str | None:
    """Return the worst verdict; None where nothing was asked."""
    verdicts = {one.verdict for one in found}
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), None)


def headline(reported: Reported) -> str:
    """Return the outcome in a sentence, and whether something is missing that it cannot be of."""
    found = judgements(reported)
    missing = sum(cell.result is None for row in reported.rows for cell in row.cells)
    said = _outcome(found)
    return f"{said} Not measured: {missing} of the table's cells." if missing else said


def _outcome(found: Sequence[Judgement]) -> str:
    worst = overall(found)
    if worst is None:
        return "No gate was set: nothing was asked of these numbers."
    said = {
        UNTRUSTED: "The numbers cannot be trusted",
        FAIL: "It did not pass",
        UNDECIDED: "It did not pass: it cannot be told yet",
        PASS: "It passed",
    }[worst]
    counts = [(sum(one.verdict == verdict for one in found), verdict) for verdict in WORST_FIRST]
    return f"{said} ({', '.join(f'{count} {verdict}' for count, verdict in counts if count)})."
