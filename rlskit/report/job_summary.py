"""A run as GitHub's Markdown: verdicts, changes against the baseline, and every number."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from rlskit.report.honesty import honest_numbers, without_adaptive
from rlskit.report.outcome import headline, judgements
from rlskit.report.reported import Measured, Reported
from rlskit.report.triage import Triage, triage
from rlskit.results.result import Measure
from rlskit.results.verdict import FAIL, PASS, UNDECIDED, UNTRUSTED, Verdict
from rlskit.results.words import figures, number, seen
from rlskit.stats import Accuracy
from rlskit.text import printable

LARGEST = 1_000_000
"""Bytes that a job's summary may have on GitHub: a little under 1 MiB."""

SIGNS = {PASS: "✅ pass", FAIL: "❌ fail", UNDECIDED: "❔ undecided", UNTRUSTED: "⛔ untrusted"}

_CHANGED = "max-drop"


def job_summary(reported: Reported) -> str:
    """Return the Markdown; what does not fit is left out from its end, and it says so."""
    judged = judgements(reported)
    parts = [f"## {escaped(reported.title)}", f"**{headline(reported)}**"]
    if judged:
        lines = [[SIGNS[one.verdict], escaped(one.sentence)] for one in judged]
        parts.append(table(["verdict", "gate"], lines))
    changes = [one for one in reported.verdicts if one.asked == _CHANGED]
    if changes:
        parts += ["### Against the baseline", table(_CHANGES, list(map(_change, changes)))]
    parts += map(_fallen, triage(reported.rows))
    honest = honest_numbers(reported.rows)
    if honest:
        lines = [[escaped(one.row), escaped(one.threat), escaped(one.sentence)] for one in honest]
        parts += ["### The honest number", table(["model", "threat", "what is left"], lines)]
        parts += [escaped(said) for said in [without_adaptive(honest)] if said]
    if reported.rows:
        parts += ["### Measured", table(_CELLS, list(_cells(reported)), numbers_from=3)]
    warnings = dict.fromkeys(said for result in reported.results for said in result.warnings)
    if warnings:
        listed = "\n".join(f"- {escaped(one)}" for one in warnings)
        parts += ["### Before you use the numbers", listed]
    return _cut("\n\n".join(parts) + "\n")


_CELLS = ["model", "measured", "protocol", "N", "number", "95 % interval", "images", "paper"]
_CHANGES = ["model", "measured", "difference", "bounds (95 %)", "allowed", "images", "verdict"]


def escaped(text: str) -> str:
    """Return a text that Markdown and HTML take for nothing but text, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#!|~&@$])", r"\\\1", printable(text))


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], numbers_from: int = 99) -> str:
    """Return a table in Markdown; its cells are `escaped` already."""
    ruler = ["---" if i < numbers_from else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ruler, *lines))


def _cells(reported: Reported) -> Iterator[list[str]]:
    for row in reported.rows:
        for cell in row.cells:
            yield [escaped(row.label), escaped(cell.label), *_number(cell)]


def _number(cell: Measured) -> list[str]:
    """Return a cell's protocol, N, number, interval, images and the paper's number."""
    value, result = cell.value, cell.result
    paper = "" if cell.paper is None else escaped(str(cell.paper))
    if result is None or value is None:
        return ["", "", "not measured" if result is None else "undefined", "", "", paper]
    view = "clean" if cell.show.startswith("clean") else seen(result)
    how = [escaped(view), str(result.n_samples)]
    if isinstance(value, Accuracy):
        mean, interval, images = figures(value)
        return [*how, f"{escaped(cell.show)} {mean} %", interval, images, paper]
    assert isinstance(value, Measure)
    interval = "" if value.ci95 is None else " – ".join(map(number, value.ci95))
    said = f"{escaped(cell.show)} {number(value.mean)}"
    return [*how, said, interval, f"{result.data.n}", paper]


def _change(one: Verdict) -> list[str]:
    """Return a line on the change of a number against the baseline's, in points."""
    apart = "" if one.measured is None else f"{100 * one.measured:+.1f} points"
    bounds = ""
    if one.bounds is not None:
        bounds = " – ".join(f"{100 * bound:+.1f}" for bound in one.bounds)
    images = "" if one.images is None else f"{one.images:,}"
    allowed = f"at most {100 * one.threshold:.1f} lost"
    place = [escaped(one.row), f"{escaped(one.column)} ({escaped(one.show)})"]
    return [*place, apart, bounds, allowed, images, SIGNS[one.verdict]]


def _fallen(one: Triage) -> str:
    """Return a list that opens on a click, of the images that newly fall."""
    listed = [f"- {escaped(image.sentence)}" for image in one.images]
    if one.rest:
        listed.append(f"- {one.rest}, in results.json")
    heading = html.escape(printable(one.heading))
    return "\n".join([f"<details><summary>{heading}</summary>", "", *listed, "", "</details>"])


def _cut(text: str) -> str:
    """Return the text, whole lines of it where it is too long for GitHub."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= LARGEST:
        return text
    kept = data[:LARGEST].decode("utf-8", "ignore").rpartition("\n")[0]
    return f"{kept}\n\nThe rest did not fit: see report.html.\n"
