"""The audit's verdicts as a table for people."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from rlskit.audit.audit_result import FAIL, PASS, AuditResult, Check

_STYLES = {PASS: "green", FAIL: "bold red"}


def audit_table(result: AuditResult) -> Table:
    """Return one row per check: measurement, threshold, verdict, and what it means."""
    architecture, data = result.model.architecture, result.data
    attack, params = result.attack.method, result.attack.params
    title = (
        f"{result.defense} · {architecture} · {data.name} ({data.split}), {data.n} images"
        f"\n{attack} eps={params['eps']:.4g} steps={params['steps']} · {result.view} "
        f"· N = {result.n_samples} · {_accuracies(result)}"
    )
    table = Table(title=escape(title), title_justify="left", caption=_CAPTION)
    table.add_column("check")
    table.add_column("measured", justify="right")
    table.add_column("fails", justify="right")
    table.add_column("verdict")
    table.add_column("what it means", ratio=1)
    for check in result.checks:
        style = _STYLES.get(check.verdict, "dim")
        table.add_row(
            f"{check.name} {check.title}", *measured_and_limit(check),
            f"[{style}]{check.verdict}[/]", escape(f"{check.detail}\n{check.meaning}".strip()),
            end_section=True,
        )  # fmt: skip
    return table


def _accuracies(result: AuditResult) -> str:
    shown = []
    for name, accuracy in result.accuracy.items():
        shown.append(f"{name} " + ("–" if accuracy is None else f"{100 * accuracy.mean:.1f} %"))
    return ", ".join(shown)


def measured_and_limit(check: Check) -> tuple[str, str]:
    """Return the measurement, and the side of the threshold on which the check fails."""
    measured = "–" if check.measured is None else f"{_number(check.measured)} {check.unit}"
    return measured, f"{'<' if check.name in BELOW else '>'} {_number(check.threshold)}"


def _number(value: float) -> str:
    return f"{value:.3g}"


_CAPTION = "A check fails where the measurement is beyond the threshold and beyond chance, at 95 %."

BELOW = {"M8", "M10", "M12"}
"""The checks that fail below their threshold; the others fail above it."""
