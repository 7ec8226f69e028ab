"""A run as JUnit's XML, as Jenkins and GitLab read it: a test case per cell and per gate."""

from __future__ import annotations

from xml.etree import ElementTree

from rlskit.audit.audit_result import SKIPPED, AuditResult
from rlskit.report.outcome import AUDIT, Judgement, judgements
from rlskit.report.reported import Measured, Reported, Row
from rlskit.results.result import Measure
from rlskit.results.verdict import FAIL, UNDECIDED, UNTRUSTED
from rlskit.results.words import figures, number, seen
from rlskit.stats import Accuracy
from rlskit.text import lines, printable


def junit(reported: Reported) -> str:
    """Return the XML, a suite per row.

    A cell is a test that passes, or is skipped where it was not measured; a gate is one that fails
    where its verdict is `fail` or `undecided`, and ends in an error where it is `untrusted`.
    """
    judged = judgements(reported)
    named = {row.name for row in reported.rows}
    root = ElementTree.Element("testsuites", name=printable(reported.title))
    for row in reported.rows:
        _suite(root, row, [one for one in judged if one.row == row.name])
    others = [one for one in judged if one.row not in {*named, AUDIT}]
    if others:
        _suite(root, Row("gates", "gates", ()), others)
    for audit in reported.audits:
        _audit_suite(root, audit)
    _count(root, root.findall("*/testcase"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, row: Row, judged: list[Judgement]) -> None:
    """Add the cells and gates of a row."""
    suite = ElementTree.SubElement(root, "testsuite", name=printable(row.name))
    for cell in row.cells:
        seconds = sum(result.timing.seconds for result in cell.results)
        case = _case(suite, row.name, cell.column, seconds)
        if cell.result is None:
            ElementTree.SubElement(case, "skipped", message="not measured")
        else:
            ElementTree.SubElement(case, "system-out").text = lines(_said(cell))
    for one in judged:
        _judged(_case(suite, row.name, one.name), one.verdict, one.sentence)
    _count(suite, suite.findall("testcase"))


def _audit_suite(root: ElementTree.Element, audit: AuditResult) -> None:
    """Add the checks of an audit."""
    name = printable(f"audit {audit.defense} {audit.attack.method}")
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    for check in audit.checks:
        case = _case(suite, name, f"{check.name} {check.title}")
        if check.verdict == SKIPPED:
            ElementTree.SubElement(case, "skipped", message=printable(check.detail))
        else:
            verdict = UNTRUSTED if check.verdict == FAIL else check.verdict
            _judged(case, verdict, f"{check.detail} {check.meaning}".strip())
    _count(suite, suite.findall("testcase"))


def _case(
    suite: ElementTree.Element, group: str, name: str, seconds: float = 0.0
) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=printable(group), name=printable(name), time=f"{seconds:.3f}"
    )


def _judged(case: ElementTree.Element, verdict: str, sentence: str) -> None:
    """Say what became of a gate."""
    kinds = {FAIL: "failure", UNDECIDED: "failure", UNTRUSTED: "error"}
    said = printable(sentence)
    if verdict in kinds:
        found = ElementTree.SubElement(case, kinds[verdict], message=said, type=verdict)
        found.text = said
    else:
        ElementTree.SubElement(case, "system-out").text = said


def _count(element: ElementTree.Element, cases: list[ElementTree.Element]) -> None:
    """Write how many test cases ended how."""
    counts = {"failures": "failure", "errors": "error"}
    if element.tag == "testsuite":
        counts["skipped"] = "skipped"
    element.set("tests", str(len(cases)))
    for name, kind in counts.items():
        element.set(name, str(sum(case.find(kind) is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _said(cell: Measured) -> str:
    """Return a cell's number with its protocol, interval and images."""
    value, result = cell.value, cell.result
    assert result is not None
    view = "clean" if cell.show.startswith("clean") else seen(result)
    how = f"({view}, N={result.n_samples}, {result.data.n:,} images of {result.data.name})"
    if isinstance(value, Accuracy):
        mean, interval, _ = figures(value)
        said = f"{cell.show} {mean} %, 95 % interval {interval}"
    elif isinstance(value, Measure):
        said = f"{cell.show} {number(value.mean)} ± {number(value.std)}"
    else:
        said = f"{cell.show} is undefined"
    return "\n".join([f"{said} {how}", *result.warnings])
