"""Line charts as SVG that stands inside a page: small, offline, and in the page's own colours.

Only numbers and our own words are drawn; names from files stand in the page's legend.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlskit.report.curves import Line, Panel, said_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the page's own ink, whatever its theme."""

MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
"""matplotlib's marks, and how the legend shows them."""

COLOURS = ("#2f7fd6", "#d1620a", "#1f9d6b", "#b04fc4", "#a68a00", "#d13a5e")
"""Seen on white and on black alike; the marks tell lines apart without them."""


@dataclass(frozen=True)
class Sign:
    """How a line is drawn."""

    mark: str
    shown: str
    colour: str


def sign(index: int) -> Sign:
    """Return how the line of that number is drawn."""
    mark, shown = MARKS[index % len(MARKS)]
    return Sign(mark, shown, COLOURS[index % len(COLOURS)])


def line_chart(panel: Panel, chance: float | None = None) -> str:
    """Return a panel's lines with their 95 % intervals as bands, as an SVG element.

    Args:
        panel: The lines.
        chance: The accuracy of guessing, in [0, 1]; None where it is not known.
    """
    import matplotlib
    from matplotlib.figure import Figure  # and not pyplot, which keeps every figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": "rlskit", "svg.fonttype": "none", "font.size": 10, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "font.family": "sans-serif",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure((4.6, 3.0), layout="constrained")
        axes = figure.subplots()
        for index, line in enumerate(panel.lines):
            _draw(axes, line, sign(index))
        if chance is not None:
            axes.axhline(100 * chance, color=INK, linewidth=1, linestyle=":")
        ticks = sorted({point.x for line in panel.lines for point in line.points})
        axes.set_xticks(ticks, [said_x(panel, x) for x in ticks])
        axes.set_ylim(-3, 103)
        axes.set_xlabel(panel.axis)
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="y", color=INK, alpha=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue())


def _draw(axes: Axes, line: Line, drawn: Sign) -> None:
    """Draw a line with its band."""
    xs = [point.x for point in line.points]
    bounds = [point.accuracy.ci95 for point in line.points]
    low, high = ([100 * one[side] for one in bounds] for side in (0, 1))
    means = [100 * point.accuracy.mean for point in line.points]
    axes.fill_between(xs, low, high, color=drawn.colour, alpha=0.18, linewidth=0)
    axes.plot(xs, means, marker=drawn.mark, color=drawn.colour, linewidth=1.8, ms=6)


def _inline(svg: str) -> str:
    """Return an SVG file as an element of a page, in its ink, and as wide as there is room."""
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1, flags=re.DOTALL)
    element = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", element)  # of groups; a page has several charts
    return element.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
