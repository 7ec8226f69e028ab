"""What a report is about: finished runs, read back from files that may come from anyone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlskit.audit.audit_result import SCHEMA as AUDIT
from rlskit.audit.audit_result import AuditResult
from rlskit.documents import from_json
from rlskit.errors import RequestError, reason
from rlskit.results import RESULTS, Finished, Result, read_results, read_run
from rlskit.results.comparison import Fallen
from rlskit.results.reading import read_json, results_in
from rlskit.results.result import Measure
from rlskit.results.verdict import Verdict
from rlskit.results.words import attack_label, heading, seen
from rlskit.stats import Accuracy

RECIPE = "rlskit.recipe/1"
"""The schema of what `rlskit run` writes."""

TRANSFERABILITY = "transferability"

AUDITED = "audit.json"
"""Where an audit is looked for, beside the results of what it is of."""


@dataclass(frozen=True)
class Measured:
    """One number of a model, with its result; or the lack of it.

    Attributes:
        column: Its name in the recipe, or the command.
        label: For people.
        show: Which number of the result it is.
        result: None where it was not measured.
        others: Further results of the same command, such as smaller budgets or fewer draws.
        paper: What a paper has there; None where it has nothing.
        folder: With the per-image table and the images; None where that is not known.
        fallen: The images that newly fall against a baseline.
    """

    column: str
    label: str
    show: str
    result: Result | None
    others: tuple[Result, ...] = ()
    paper: float | str | None = None
    folder: Path | None = None
    fallen: tuple[Fallen, ...] = ()

    @property
    def value(self) -> Accuracy | Measure | None:
        """The number itself."""
        if self.result is None:
            return None
        if self.show == TRANSFERABILITY and self.result.transfer is not None:
            found = self.result.transfer.off_diagonal[TRANSFERABILITY]
            return Measure(mean=found.mean, std=found.std, ci95=None)
        return self.result.accuracy.get(self.show) or (self.result.agreement or {}).get(self.show)

    @property
    def results(self) -> tuple[Result, ...]:
        """All that was measured."""
        return () if self.result is None else (*self.others, self.result)

    @property
    def parts(self) -> tuple[Finished, ...]:
        """What was measured image by image, as far as its tables are at hand and of this result."""
        if self.folder is None:
            return ()
        try:
            parts = read_run(self.folder).parts
        except RequestError:
            return ()
        own = [replace(result, gate=None) for result in self.results]
        return tuple(part for part in parts if replace(part.result, gate=None) in own)


@dataclass(frozen=True)
class Row:
    """One model with what was measured of it.

    Attributes:
        name: Its key in the recipe.
        label: For people.
        cells: What was measured.
    """

    name: str
    label: str
    cells: tuple[Measured, ...]

    @property
    def results(self) -> Iterator[Result]:
        """Yield the results of all cells."""
        for cell in self.cells:
            yield from cell.results


@dataclass(frozen=True)
class Reported:
    """One run of a recipe, of `attack`, `eval` or `diversity`, an audit, or several of these.

    Attributes:
        title: Of the report.
        rows: The models.
        verdicts: What became of a recipe's gates.
        commands: The command lines of a recipe's stages.
        audits: What was audited.
        sources: The files that were read.
    """

    title: str
    rows: tuple[Row, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    commands: tuple[str, ...] = ()
    audits: tuple[AuditResult, ...] = ()
    sources: tuple[Path, ...] = ()

    @property
    def results(self) -> Iterator[Result]:
        """Yield the results of all rows."""
        for row in self.rows:
            yield from row.results


@dataclass(frozen=True)
class _Cell:
    """A cell in a recipe's `results.json`."""

    column: str
    label: str
    show: str
    paper: float | str | None
    result: dict[str, Any] | None
    fallen: tuple[Fallen, ...] | None = None


@dataclass(frozen=True)
class _Line:
    """A row in a recipe's `results.json`."""

    name: str
    label: str
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class _Document:
    """A recipe's `results.json`, as far as a report needs it."""

    title: str
    rows: tuple[_Line, ...]
    gates: tuple[Verdict, ...] = ()
    commands: tuple[str, ...] = ()


def read_reported(path: str | Path) -> Reported:
    """Read one run.

    Args:
        path: The folder of `rlskit run`, `attack`, `eval` or `diversity`, or its `results.json`; or
            the JSON of an audit.

    Raises:
        RequestError: It is none of these, or cannot be read.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    found = read_json(file)
    schema = found.get("schema") if isinstance(found, dict) else None
    try:
        if schema == RECIPE:
            return _of_recipe(found, file)
        if schema == AUDIT:
            audit = from_json(found, AuditResult)
            return Reported(_title_of(audit), audits=(audit,), sources=(file,))
    except ValueError as error:
        raise RequestError(f"{file} is not of the schema {schema} ({reason(error)})") from error
    return _of_results(read_results(file), file)


def side_by_side(runs: Sequence[Reported], names: Sequence[str]) -> Reported:
    """Return several runs as one, each row led by the name of its run.

    Args:
        runs: At least one.
        names: One of each.
    """
    if len(runs) == 1:
        return runs[0]
    rows = [
        replace(row, name=f"{name}/{row.name}", label=f"{name}: {row.label}")
        for run, name in zip(runs, names, strict=True)
        for row in run.rows
    ]
    verdicts = [
        replace(verdict, row=f"{name}/{verdict.row}")
        for run, name in zip(runs, names, strict=True)
        for verdict in run.verdicts
    ]
    return Reported(
        " · ".join(dict.fromkeys(run.title for run in runs)),
        tuple(rows),
        tuple(verdicts),
        tuple(command for run in runs for command in run.commands),
        _different(audit for run in runs for audit in run.audits),
        tuple(source for run in runs for source in run.sources),
    )


def _of_recipe(found: Any, file: Path) -> Reported:
    """Return a recipe's run.

    Raises:
        RequestError: A result in it cannot be read.
        ValueError: It is not as a recipe's run is.
    """
    document = from_json(found, _Document)
    rows = []
    for line in document.rows:
        cells = [
            _cell(cell, _below(file.parent, line.name, cell.column), file) for cell in line.cells
        ]
        rows.append(Row(line.name, line.label, tuple(cells)))
    folders = [cell.folder for row in rows for cell in row.cells if cell.folder is not None]
    audits = _audits(folders, (result for row in rows for result in row.results))
    gates, commands = document.gates, document.commands
    return Reported(document.title, tuple(rows), gates, commands, audits, (file,))


def _cell(cell: _Cell, folder: Path | None, file: Path) -> Measured:
    """Return a cell of a recipe, and the further results that its folder holds.

    Raises:
        RequestError: Its result cannot be read.
    """
    result: Result | None = None
    others: tuple[Result, ...] = ()
    if cell.result is not None:
        (result,) = results_in([cell.result], file)
        if folder is not None:
            with suppress(RequestError):
                *rest, last = read_results(folder / RESULTS)
                others = tuple(rest) if last == result else ()
    return Measured(
        cell.column, cell.label, cell.show, result, others, cell.paper, folder, cell.fallen or ()
    )


def _below(folder: Path, *names: str) -> Path | None:
    """Return the folder of a cell, unless the names of an untrusted file lead out of the run's."""
    place = folder.joinpath(*names)
    inside = (
        place.resolve().is_relative_to(folder.resolve()) and place.resolve() != folder.resolve()
    )
    return place if inside and place.is_dir() else None


def _of_results(results: Sequence[Result], file: Path) -> Reported:
    """Return a run of one command, or several in a list; a row for each model."""
    homes = _homes(file.parent)
    models: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        key = result.defense, result.checkpoint.sha256 or result.model.architecture
        models.setdefault(key, []).append(result)
    rows = []
    for own in models.values():
        label = _row_label(own[0], list(models))
        cells = []
        for result in own:
            folder = file.parent if len(results) == 1 else _home_of(result, homes)
            said = _cell_label(result, own)
            cells.append(Measured(said, said, _shown(result), result, folder=folder))
        rows.append(Row(label, label, tuple(cells)))
    facts = [heading(result).split(" · ") for result in results]
    title = " · ".join(", ".join(dict.fromkeys(fact)) for fact in zip(*facts, strict=False))
    folders = [file.parent, *(folder for _, folder in homes)]
    return Reported(title, tuple(rows), audits=_audits(folders, results), sources=(file,))


def _cell_label(result: Result, own: Sequence[Result]) -> str:
    """Return the attack with its protocol, or the command, and N where another N was measured.

    Args:
        result: What was measured.
        own: All that was measured with it.
    """
    label = f"{attack_label(result)}, {seen(result)}" if result.attack else result.command
    alike = [one for one in own if (one.command, one.attack) == (result.command, result.attack)]
    return f"{label}, N={result.n_samples}" if len(alike) > 1 else label


def _homes(folder: Path) -> list[tuple[list[Result], Path]]:
    """Return the runs in the folders below one."""
    found = []
    for file in sorted(folder.glob(f"*/{RESULTS}")):
        with suppress(RequestError):  # what is none of a run is no part of this one
            found.append((read_results(file), file.parent))
    return found


def _home_of(result: Result, homes: Sequence[tuple[list[Result], Path]]) -> Path | None:
    """Return the folder of a result's own run."""
    alone = replace(result, gate=None)  # the whole run's, not an attack's
    return next((folder for results, folder in homes if results == [alone]), None)


def _shown(result: Result) -> str:
    """Return which number of a result is shown."""
    if result.agreement is not None:
        return "kappa"
    if result.transfer is not None:
        return TRANSFERABILITY
    return "robust" if "robust" in result.accuracy else "clean"


def _row_label(result: Result, models: Sequence[tuple[str, str]]) -> str:
    """Return a model's defense and architecture, and its file where those are of several."""
    label = f"{result.defense} · {result.model.architecture}"
    several = sum(defense == result.defense for defense, _ in models) > 1
    return f"{label} · {result.checkpoint.path}" if several else label


def _audits(folders: Iterable[Path], results: Iterable[Result]) -> tuple[AuditResult, ...]:
    """Return the audits of the models of some results that lie in folders."""
    models = {result.checkpoint.sha256 for result in results} - {None}
    found = []
    for folder in dict.fromkeys(folders):
        with suppress(RequestError, ValueError):
            found.append(from_json(read_json(folder / AUDITED), AuditResult))
    return _different(audit for audit in found if audit.checkpoint.sha256 in models)


def _different(audits: Iterable[AuditResult]) -> tuple[AuditResult, ...]:
    """Return each audit once."""
    found: list[AuditResult] = []
    for audit in audits:
        if audit not in found:
            found.append(audit)
    return tuple(found)


def _title_of(audit: AuditResult) -> str:
    return f"Audit · {audit.defense} · {audit.model.architecture} · {audit.data.name}"
