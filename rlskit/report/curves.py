"""Accuracy against budget, attacked draws and answering draws: which results make a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlskit.documents import to_json
from rlskit.report.honesty import is_untargeted, said_budget, threat
from rlskit.report.reported import Row
from rlskit.results.result import Result
from rlskit.results.words import attack_label, draws_of, protocol
from rlskit.stats import Accuracy


@dataclass(frozen=True)
class Point:
    """One accuracy on a line.

    Attributes:
        x: Budget in [0, 1], or a number of draws.
        accuracy: There.
    """

    x: float
    accuracy: Accuracy


@dataclass(frozen=True)
class Line:
    """The points of one model, by ascending x; at least two."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """Lines that may be compared: same attack, protocol and images.

    Attributes:
        title: What they have in common.
        axis: What x is.
        images: Digest of the images.
        lines: At least one.
    """

    title: str
    axis: str
    images: str
    lines: tuple[Line, ...]


_Groups = dict[tuple[str, str, str], dict[str, dict[float, Accuracy]]]
"""(title, digest of the images, the attack's other settings) -> line -> x -> accuracy."""


def budget_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Return accuracy against budget, from clean on: a panel for each attack and protocol."""
    found: _Groups = {}
    for row in rows:
        for result in row.results:
            eps = _eps(result)
            if eps is None:
                continue
            label = _with_draws(row.label, result)
            points = found.setdefault(_alike(result), {}).setdefault(label, {})
            points[eps] = result.accuracy["robust"]
            if "clean" in result.accuracy:
                points[0.0] = result.accuracy["clean"]
    return _panels(found, "budget eps", lambda points: len(points.keys() - {0.0}) > 1)


_VIEWS = {"transfer": "fixed draws", "multi": "fixed draws", "eot": "fresh draws"}
"""The protocols whose attacker may see more or fewer draws, and which these are."""


def attacked_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Return robust accuracy against the number of attacked draws."""
    found: _Groups = {}
    for row in rows:
        for result in row.results:
            view = _VIEWS.get(result.protocol)
            if view is not None and is_untargeted(result) and result.n_attacked is not None:
                title = f"{attack_label(result)}, {view}, {_images(result)}"
                lines = found.setdefault((title, _sha(result), _settings(result)), {})
                label = _with_draws(_model(row, result, rows), result)
                points = lines.setdefault(label, {})
                points.setdefault(result.n_attacked, result.accuracy["robust"])
    return _panels(found, "attacked draws n", _several)


def sample_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Return accuracy against N, the number of draws that answer together."""
    found: _Groups = {}
    for row in rows:
        for result in row.results:
            keys = {"clean": (f"clean, {_images(result)}", _sha(result), "")}
            if is_untargeted(result):
                how = f"{attack_label(result)}, {protocol(result)}, {_images(result)}"
                keys["robust"] = how, _sha(result), _settings(result)
            for kind, key in keys.items():
                if kind in result.accuracy:
                    points = found.setdefault(key, {}).setdefault(_model(row, result, rows), {})
                    points.setdefault(result.n_samples, result.accuracy[kind])
    return _panels(found, "answering draws N", _several)


def _panels(
    found: _Groups,
    axis: str,
    wanted: Callable[[dict[float, Accuracy]], bool],
) -> tuple[Panel, ...]:
    """Return a panel of each group that has a line worth drawing."""

    def lines(group: dict[str, dict[float, Accuracy]]) -> Iterator[Line]:
        for label, points in group.items():
            if wanted(points):
                yield Line(label, tuple(Point(x, points[x]) for x in sorted(points)))

    panels = [
        Panel(title, axis, images, tuple(lines(group)))
        for (title, images, _), group in found.items()
    ]
    return tuple(panel for panel in panels if panel.lines)


def _several(points: dict[float, Accuracy]) -> bool:
    return len(points) > 1


def _eps(result: Result) -> float | None:
    """Return the budget of an untargeted attack; None where it has none, or several."""
    if not is_untargeted(result):
        return None
    assert result.attack is not None
    budgets = {one.params.get("eps") for one in result.attack.of or (result.attack,)}
    eps = budgets.pop() if len(budgets) == 1 else None
    return float(eps) if isinstance(eps, int | float) else None


def _alike(result: Result) -> tuple[str, str, str]:
    """Return what two points of a line have in common but the budget."""
    assert result.attack is not None
    attacks = result.attack.of or (result.attack,)
    method = " + ".join(dict.fromkeys(one.method for one in attacks))
    norm = threat(result).partition(" eps ")[0]
    title = f"{method} ({norm}), {protocol(result)}, {_images(result)}"
    return title, _sha(result), _settings(result, "eps", "step_size")


def _settings(result: Result, *varied: str) -> str:
    """Return all that decides an attack's strength, but for what varies along a line."""
    assert result.attack is not None
    attacks = result.attack.of or (result.attack,)
    params = [{k: v for k, v in one.params.items() if k not in varied} for one in attacks]
    return json.dumps([result.attack.view, result.attack.risk, to_json(params)], sort_keys=True)


def _with_draws(label: str, result: Result) -> str:
    """Return a model with the number of its draws that answer, where it has several."""
    if draws_of(result) == 1:
        return f"{label}, its only draw attacked"
    return label if result.n_samples == 1 else f"{label}, N = {result.n_samples}"


def _images(result: Result) -> str:
    return f"{result.data.n:,} images"


def _sha(result: Result) -> str:
    return result.data.adversarial_sha256 or result.data.sha256


def _model(row: Row, result: Result, rows: Sequence[Row]) -> str:
    """Return a name for the model that a row measures, the same for all rows that measure it."""
    for other in rows:
        if other is row or any(_same(one, result) for one in other.results):
            return other.label
    return row.label


def _same(one: Result, other: Result) -> bool:
    return one.checkpoint.sha256 is not None and one.checkpoint.sha256 == other.checkpoint.sha256


def said_x(panel: Panel, x: float) -> str:
    """Return a place on a panel's axis, for people."""
    return said_budget(x) if "eps" in panel.axis else f"{x:g}"
