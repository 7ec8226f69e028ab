"""A table of text, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from rlskit.text import printable


@dataclass(frozen=True)
class Grid:
    """A table whose cells are lines of text.

    Attributes:
        title: What it shows.
        heads: Of the columns; the first is that of the lines' own heads.
        lines: Each led by its own head.
        caption: What all numbers are.
        notes: Sentences below it.
    """

    title: str
    heads: Sequence[Sequence[str]]
    lines: Sequence[Sequence[Sequence[str]]]
    caption: str
    notes: Sequence[str] = ()


def rich_grid(grid: Grid) -> Table:
    """Return the table for a terminal, without its notes."""
    table = Table(title=escape(grid.title), title_justify="left", caption=grid.caption)
    for index, head in enumerate(grid.heads):
        table.add_column(escape("\n".join(head)), justify="right" if index else "left")
    for line in grid.lines:
        table.add_row(*(escape("\n".join(text)) for text in line), end_section=True)
    return table


def markdown_grid(grid: Grid) -> str:
    """Return the table as GitHub's Markdown."""
    ruler = [["---"], *([["---:"]] * (len(grid.heads) - 1))]
    rows = [
        "| " + " | ".join("<br>".join(map(_cell, text)) for text in row) + " |"
        for row in (grid.heads, ruler, *grid.lines)
    ]
    notes = [f"- {printable(note)}" for note in grid.notes]
    below = [grid.caption, "", *notes, ""] if notes else [grid.caption, ""]
    return "\n".join([f"**{printable(grid.title)}**", "", *rows, "", *below])


def _cell(text: str) -> str:
    """Return a text that neither ends a cell of Markdown's nor hides in it."""
    return printable(text).replace("|", "\\|")
