"""The table of a recipe: what was measured beside what the paper reports."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlskit.documents import to_json as json_values
from rlskit.recipes.looks import limited, taken
from rlskit.recipes.recipe import Column, Recipe, Row
from rlskit.recipes.stages import Stage
from rlskit.report import Grid
from rlskit.results import Result, read_results
from rlskit.results.comparing import hidden_among
from rlskit.results.comparison import Fallen
from rlskit.results.result import Measure
from rlskit.results.verdict import Verdict
from rlskit.results.words import figures, number, protocol, seen
from rlskit.stats import Accuracy

SCHEMA = "rlskit.recipe/1"

IsFinished = Callable[[Stage, Path], bool]


@dataclass(frozen=True)
class Cell:
    """One number with its protocol, or the lack of it.

    Attributes:
        row: Whose.
        column: Of what.
        result: What the command found; None where the stage is not finished.
        paper: What the paper has there; None where it has nothing.
    """

    row: Row
    column: Column
    result: Result | None
    paper: float | str | None

    @property
    def name(self) -> str:
        """What it is called: `ROW/COLUMN`, as its stage."""
        return f"{self.row.name}/{self.column.name}"

    @property
    def value(self) -> Accuracy | Measure | None:
        """The number that the column shows, over the repeats and with its interval."""
        if self.result is None:
            return None
        found = self.result.accuracy.get(self.column.show)
        return found or (self.result.agreement or {}).get(self.column.show)

    @property
    def figures(self) -> list[str]:
        """The lines of the cell, without the protocol."""
        value = self.value
        if value is None:
            ours = ["–"]
        elif isinstance(value, Accuracy):
            ours = list(figures(value)[:2])
        else:
            ours = [number(value.mean), *([f"± {number(value.std)}"] if value.std else [])]
        return ours if self.paper is None else [*ours, f"paper {self.paper}"]

    @property
    def facts(self) -> tuple[str, str] | None:
        """How the number came about, which stands with it: protocol, and N; None without one."""
        if self.value is None or self.result is None:
            return None
        view = "clean" if self.column.show.startswith("clean") else protocol(self.result)
        count = 1 if self.column.show.endswith("_gibbs") else self.result.n_samples
        return view, f"N={count}"

    @property
    def view(self) -> str | None:
        """The protocol for people, which calls a white-box attack one; None without a number."""
        if self.facts is None or self.result is None:
            return None
        return "clean" if self.facts[0] == "clean" else seen(self.result)


def grid(recipe: Recipe, folder: Path, is_finished: IsFinished) -> Grid:
    """Return the table as text; the shorter of rows and columns goes across."""
    found = cells(recipe, folder, is_finished)
    heads, lines = _layout(found)
    notes = [f"{line[0].row.label}: {said}" for line in found for said in _hidden(line)]
    shuffled = any(
        cell.result is not None and cell.result.data.order is not None
        for line in found
        for cell in line
    )
    return Grid(recipe.title, heads, lines, _CAPTION + _LOOKED * shuffled, notes)


def to_json(
    recipe: Recipe,
    folder: Path,
    is_finished: IsFinished,
    verdicts: Sequence[Verdict] = (),
    fallen: Mapping[str, Sequence[Fallen]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return all rows with their cells, the paper's numbers and whole results; verdicts; commands.

    `hidden` has a sentence for each attack of a row under both `known` and `eot`; `fallen` the
    images of a cell that the baseline's model was right on, and this one is not; null where
    nothing tells.
    """
    rows = [
        {
            "name": line[0].row.name,
            "label": line[0].row.label,
            "hidden": _hidden(line),
            "cells": [
                {
                    "column": cell.column.name,
                    "label": cell.column.label,
                    "show": cell.column.show,
                    "value": json_values(cell.value),
                    "paper": cell.paper,
                    "result": None if cell.result is None else cell.result.to_json(),
                    "fallen": json_values(fallen.get(cell.name)),
                }
                for cell in line
            ],
        }
        for line in cells(recipe, folder, is_finished)
    ]
    return {
        "schema": SCHEMA,
        "title": recipe.title,
        "recipe": str(recipe.path),
        "rows": rows,
        "gates": json_values(verdicts),
        "commands": [
            shlex.join(["rlskit", *_as_run(stage, folder, is_finished).arguments(folder)])
            for stage in recipe.stages
        ],
    }


def _as_run(stage: Stage, folder: Path, is_finished: IsFinished) -> Stage:
    """Return a stage with as many images as were taken, where a budget decided on that."""
    if stage.budget is None or not is_finished(stage, folder):
        return stage
    return limited(stage, taken(read_results(folder / stage.output)[-1]))


def cells(recipe: Recipe, folder: Path, is_finished: IsFinished) -> list[list[Cell]]:
    """Return the cells, a list per row; those of unfinished stages are empty."""
    found = []
    for row in recipe.rows:
        line = []
        for column in recipe.columns:
            stage = recipe.cell(row.name, column.name)
            done = stage is not None and is_finished(stage, folder)
            result = None  # else the last of several: the worst case, or that of the largest N
            if stage is not None and done:
                result = read_results(folder / stage.output)[-1]
            line.append(Cell(row, column, result, recipe.paper.get(row.name, {}).get(column.name)))
        found.append(line)
    return found


def _hidden(line: list[Cell]) -> list[str]:
    """Return what a row's results under `known` say about those under `eot`."""
    return hidden_among([cell.result for cell in line if cell.result is not None])


_CAPTION = "accuracies in % with Wilson's 95 % interval; N draws answer together"
_LOOKED = "; with a budget the interval is one that holds however often one looks"


def _layout(lines: list[list[Cell]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Return the lines of text of all heads, and of all cells, each line led by its own head.

    The protocol stands in the heads of the columns where each has but one, else in those of the
    lines where each has but one, else in the cells; and so does N. A cell that was attacked as a
    white box beside others that were not says it itself.
    """
    by_row = len(lines[0]) < len(lines)
    if not by_row:  # the attacks go down, as in the paper's Table 1
        lines = [list(line) for line in zip(*lines, strict=True)]
    columns = [list(column) for column in zip(*lines, strict=True)]
    heads = [["model" if by_row else "measured"]]
    heads += [[column[0].row.label if not by_row else column[0].column.label] for column in columns]
    body = [
        [[line[0].row.label if by_row else line[0].column.label], *(list(c.figures) for c in line)]
        for line in lines
    ]
    for fact in (0, 1):
        if all(len(_values(column, fact)) < 2 for column in columns):
            for head, column in zip(heads[1:], columns, strict=True):
                head += _values(column, fact)
        elif all(len(_values(line, fact)) < 2 for line in lines):
            for texts, line in zip(body, lines, strict=True):
                texts[0] += _values(line, fact)
        else:
            for texts, line in zip(body, lines, strict=True):
                for text, cell in zip(texts[1:], line, strict=True):
                    text += _values([cell], fact)
    for texts, line in zip(body, lines, strict=True):
        for head, text, cell in zip(heads[1:], texts[1:], line, strict=True):
            if cell.view is not None and cell.view not in (*head, *texts[0], *text):
                text.append(cell.view)
    return heads, body


def _values(cells: list[Cell], fact: int) -> list[str]:
    """Return the different values of a fact among cells with a number."""
    views = dict.fromkeys(cell.view for cell in cells if cell.view is not None)
    if fact == 0 and len(views) == 1:
        return [*views]
    return list(dict.fromkeys(cell.facts[fact] for cell in cells if cell.facts))
