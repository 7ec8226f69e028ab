"""A run as one self-contained page: no network, nothing that tracks, both themes.

All texts of files are escaped by Jinja; the page's own policy allows no script but its own, by its
digest, and no address but those of pictures inside the page.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlskit import __version__
from rlskit.audit.audit_result import AuditResult
from rlskit.report import charts, curves
from rlskit.report.audit_table import measured_and_limit
from rlskit.report.gallery import DISTANCES, Gallery
from rlskit.report.honesty import PROTOCOLS, honest_numbers, without_adaptive
from rlskit.report.outcome import headline, judgements, overall
from rlskit.report.per_class import class_tables, guessing
from rlskit.report.reported import Measured, Reported, Row
from rlskit.report.triage import triage
from rlskit.results.result import Measure, Result
from rlskit.results.words import attack_label, figures, number, seen
from rlskit.stats import Accuracy
from rlskit.text import printable

_FOLDER = Path(__file__).parent / "page"

SECTIONS = {
    "verdicts": "Did it pass?",
    "honest": "The honest number",
    "budget": "Accuracy against budget",
    "attacked": "Attacked draws",
    "samples": "Answering draws",
    "transfer": "Agreement and transfer between draws",
    "broken": "What broke it",
    "classes": "Class by class",
    "audit": "Does the attack work?",
    "images": "The images",
    "cost": "What it cost",
    "again": "How to make it again",
}
"""The parts of the page in their order; one without material is left out."""


@dataclass(frozen=True)
class Figure:
    """A panel with its picture; the numbers stand in a table below it."""

    panel: curves.Panel
    picture: Markup
    signs: tuple[charts.Sign, ...]
    chance: float | None


def webpage(reported: Reported, pictures: Gallery) -> str:
    """Return the page.

    Args:
        reported: What it is about.
        pictures: The images to show.
    """
    style, script = ((_FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = _material(reported, pictures)
    present = {key: title for key, title in SECTIONS.items() if found[key]}
    return _environment().get_template("report.html.jinja").render(
        reported=reported, found=found, sections=present, style=Markup(style),
        script=Markup(script), digest=digest, version=__version__, distances=DISTANCES,
        pictures_json=_pictures(pictures),
    )  # fmt: skip


def _material(reported: Reported, pictures: Gallery) -> dict[str, Any]:
    """Return what each of `SECTIONS` is made of; nothing where it is to be left out."""
    judged, rows = judgements(reported), reported.rows
    chance = guessing(rows)
    return {
        "verdicts": {
            "judged": judged,
            "headline": headline(reported),
            "worst": overall(judged),
            "fallen": triage(reported.rows),
        },
        "honest": {
            "found": (honest := honest_numbers(rows)),
            "weak": without_adaptive(honest),
            "protocols": [p for p in PROTOCOLS if any(p in one.by_protocol for one in honest)],
            "warnings": list(dict.fromkeys(w for one in reported.results for w in one.warnings)),
            "rows": rows,
        },
        "budget": _figures(curves.budget_panels(rows), chance),
        "attacked": _figures(curves.attacked_panels(rows), chance),
        "samples": _figures(curves.sample_panels(rows), chance),
        "transfer": _with(rows, lambda one: one.agreement is not None or one.transfer is not None),
        "broken": _with(rows, lambda one: bool(one.attack and one.attack.broken)),
        "classes": class_tables(rows),
        "audit": reported.audits,
        "images": pictures if pictures.images or pictures.notes else None,
        "cost": [(row, cell) for row in rows for cell in row.cells if cell.results],
        "again": {"versions": _versions(reported), "models": _models(reported)},
    }


@functools.cache
def _environment() -> jinja2.Environment:
    """Return Jinja with everything escaped, and no character that hides."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )  # fmt: skip
    found.filters |= {
        "percent": lambda share: f"{100 * share:.1f}", "figures": figures, "number": number,
        "attack": attack_label, "protocol": seen, "shown": _shown, "limit": measured_and_limit,
    }  # fmt: skip
    found.globals |= {"said_x": curves.said_x, "cost": _cost}
    return found


def _figures(panels: Sequence[curves.Panel], chances: dict[str, float]) -> list[Figure]:
    found = []
    for panel in panels:
        chance = chances.get(panel.images)
        signs = tuple(map(charts.sign, range(len(panel.lines))))
        found.append(Figure(panel, Markup(charts.line_chart(panel, chance)), signs, chance))
    return found


def _with(rows: Sequence[Row], wanted: Any) -> list[tuple[Row, Result]]:
    """Return the results of all rows that a condition picks, each with its row."""
    return [(row, result) for row in rows for result in row.results if wanted(result)]


def _shown(cell: Measured) -> dict[str, str]:
    """Return a cell's number in words: value, interval, images, protocol and N."""
    value, result = cell.value, cell.result
    if result is None or value is None:
        said = "not measured" if result is None else "undefined"
        return {"value": said, "interval": "", "images": "", "how": "", "n": ""}
    view = "clean" if cell.show.startswith("clean") else seen(result)
    facts = {"how": view, "n": str(result.n_samples), "images": f"{result.data.n:,}"}
    if isinstance(value, Accuracy):
        mean, interval, images = figures(value)
        return facts | {"value": f"{mean} %", "interval": interval, "images": images}
    assert isinstance(value, Measure)
    interval = "" if value.ci95 is None else " – ".join(map(number, value.ci95))
    return facts | {"value": number(value.mean), "interval": interval}


def _cost(results: Sequence[Result]) -> dict[str, float]:
    """Return what results cost together; several of one command share their blocks' cost."""
    names = ("seconds", "forwards", "backwards")
    several = {result.timing for result in results}
    return {name: sum(getattr(one, name) for one in several) for name in names}


def _versions(reported: Reported) -> list[str]:
    """Return the libraries that the numbers depend on, each with every version that was used."""
    found: dict[str, None] = {}
    everything: list[Result | AuditResult] = [*reported.results, *reported.audits]
    for one in everything:
        found |= dict.fromkeys(f"{name} {version}" for name, version in one.versions.items())
    return list(found)


def _models(reported: Reported) -> list[dict[str, Any]]:
    """Return what was measured on what, once for each model, data and machine."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    everything: list[tuple[str, Result | AuditResult]] = [
        (row.label, result) for row in reported.rows for result in row.results
    ]
    everything += [("audit", audit) for audit in reported.audits]
    for label, one in everything:
        facts = {
            "row": label, "checkpoint": one.checkpoint, "model": one.model, "data": one.data,
            "seed": one.seed, "device": one.device,
        }  # fmt: skip
        key = label, one.checkpoint.sha256, one.data.sha256, one.seed, one.device
        found.setdefault(key, facts)
    return list(found.values())


def _pictures(pictures: Gallery) -> dict[str, Any]:
    """Return what the page's script is told of the images."""
    return {
        "sheets": [_printable(sheet) for sheet in pictures.sheets],
        "images": [_printable(image) for image in pictures.images],
        "names": list(map(printable, pictures.class_names)),
    }


def _printable(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: printable(one) if isinstance(one, str) else one for key, one in facts.items()}
