"""A recipe: rows are models, columns are what is measured of each, and both name commands' options.

[all]                      options of every command that takes them
[convert] [train] ...      options of one command, for all rows and columns
[columns.NAME]             one attack, eval or diversity; its options win over those above; and
                           whether its attack is audited (rlskit.recipes.audited), and how long
                           it may take (rlskit.recipes.budgeted)
[rows.NAME]                one model; its options win over the columns'
[paper.ROW]                the paper's numbers, by column
[gates] [baseline]         what must hold of the cells (rlskit.recipes.gates)

In a row, `COMMAND = false` leaves the command out, `columns = [NAME, ...]` measures these only, and
`checkpoint = FILE` names a finished model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlskit.errors import RequestError
from rlskit.recipes.audited import audit_of
from rlskit.recipes.budgeted import with_budgets
from rlskit.recipes.gates import MAX_DROP, Gate, read_gates
from rlskit.recipes.stages import AUDIT, MEASURING, Stage, listing, option_text
from rlskit.recipes.toml_file import merged, read, texts
from rlskit.results.comparison import KNOWN
from rlskit.text import nearest

SHOWN = {
    "attack": (
        "robust", "robust_gibbs", "robust_8bit", "clean", "clean_gibbs", "attack_success",
        "target_reached", "withstood",
    ),
    "eval": ("clean", "clean_gibbs", "robust", "robust_gibbs"),
    "diversity": ("kappa", "disagreement", "double_fault", "q_statistic"),
}  # fmt: skip
"""Command -> numbers of its result that a column may show, the default first."""

COMMANDS = ("convert", "train", *MEASURING)
"""What stages run."""

_SECTIONS = ("title", "all", *COMMANDS, "rows", "columns", "paper", "gates", "baseline")
_ROW = ("label", "of", "checkpoint", "columns", *COMMANDS)
_COLUMN = ("label", "show", "audit", "budget", *MEASURING)
_OURS = (  # `run` itself decides
    "out",
    "shard",
    "json",
    "force",
    "quiet",
    "progress",
    "checkpoint",
    "help",
    "trust",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")  # `"model=x" = true` would be another option than it seems
_MOST_STAGES = 10_000
_LARGEST_NUMBER = 1e300

Takes = Mapping[str, Collection[str]]
"""Command -> the options that it takes, which only the command line knows."""


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: Its key in the recipe, and its folder.
        label: For people.
        of: The row whose model it is; None for its own.
    """

    name: str
    label: str
    of: str | None


@dataclass(frozen=True)
class Column:
    """One measurement of every model.

    Attributes:
        name: Its key in the recipe.
        label: For people.
        command: `attack`, `eval` or `diversity`.
        show: The number of the result that the table shows.
    """

    name: str
    label: str
    command: str
    show: str


@dataclass(frozen=True)
class Recipe:
    """What a TOML file asks for.

    Attributes:
        path: The file.
        title: Of the table.
        rows: In the order of the table.
        columns: In the order of the table.
        stages: In an order in which each comes after what it needs.
        paper: Row -> column -> the number that the paper has there.
        said: All texts that `--set` gave, which the user answers for.
        gates: What must hold of the cells.
        baseline: What its cells are held against.
    """

    path: Path
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    stages: tuple[Stage, ...]
    paper: Mapping[str, Mapping[str, float | str]]
    said: frozenset[str] = frozenset()
    gates: tuple[Gate, ...] = ()
    baseline: Path | None = None

    def cell(self, row: str, column: str) -> Stage | None:
        """Return the stage that fills one cell; None where the row leaves the command out."""
        return next((stage for stage in self.stages if stage.name == f"{row}/{column}"), None)

    def gated(self, stage: Stage) -> bool:
        """Whether a gate looks at what a stage measures."""
        return bool(self._asked(stage))

    def drops(self, stage: Stage) -> bool:
        """Whether a gate asks how much of what a cell measures was lost."""
        return stage.command in MEASURING and MAX_DROP in self._asked(stage)

    def _asked(self, stage: Stage) -> set[str]:
        row, _, column = stage.about.partition("/")
        return {ask for gate in self.gates if gate.is_about(row, column) for ask in gate.asks}


def load(path: str | Path, sets: Sequence[str] = (), takes: Takes | None = None) -> Recipe:
    """Read a recipe and resolve all its stages.

    Args:
        path: The TOML file.
        sets: `KEY=VALUE` changes, such as `rows.rls.train.epochs=1`.
        takes: Options of `[all]` that a command does not take are left out for it; None where
            every command takes all of them.

    Raises:
        RequestError: As `rlskit.recipes.toml_file.read`; or a key, row or column is unknown, or one
            says what it may not.
    """
    listing.cache_clear()
    path = Path(path)
    values = read(path, sets)
    if path.name == "rlskit.toml":
        values.pop("defaults", None)  # of commands that are typed; stages have [all]
    if values.get("paper") is False:
        del values["paper"]
    _require_known(values, _SECTIONS, f"{path}")
    for section in ("all", *COMMANDS, "rows", "columns", "paper", "gates", "baseline"):
        _require_table(values.get(section, {}), f"{path}: {section}")
    values["all"] = _dealt(values.get("all", {}), takes, f"{path}: all")
    rows, columns = _present(values, "rows", path), _present(values, "columns", path)
    for name, row in rows.items():
        _check_row(name, row, rows, f"{path}: rows.{name}")
        _check_choice(row.get("columns", []), values["columns"], f"{path}: rows.{name}.columns")
    for name, column in columns.items():
        _check_column(name, column, f"{path}: columns.{name}")
    _check_paper(values.get("paper", {}), values, path)
    if len(rows) * len(columns) > _MOST_STAGES:
        raise RequestError(f"{path} has {len(rows) * len(columns):,} cells, beyond reason")
    stages = _stages(values, rows, columns)
    shown = tuple(_column(name, column, values) for name, column in columns.items())
    shows = {column.name: column.show for column in shown}
    gates = read_gates(values.get("gates", {}), list(rows), shows, str(path))
    _check_measured(gates, list(rows), [stage.name for stage in stages], str(path))
    stages = with_budgets(stages, columns, shows, gates, str(path))
    return Recipe(
        path=path,
        title=str(values.get("title", path.stem)),
        rows=tuple(Row(n, str(row.get("label", n)), row.get("of")) for n, row in rows.items()),
        columns=shown,
        stages=tuple(stages),
        paper=values.get("paper", {}),
        said=texts(sets),
        gates=gates,
        baseline=_baseline(values, columns, path),
    )


def _baseline(values: Mapping[str, Any], columns: Mapping[str, Any], path: Path) -> Path | None:
    """Return the baseline, if one is named.

    Raises:
        RequestError: It is not there, or is needed and not named; or a drop is asked for of what
            has no answers per image.
    """
    table = values.get("baseline", {})
    _require_known(table, ("results",), f"{path}: baseline")
    needing = [name for name, gate in values.get("gates", {}).items() if MAX_DROP in gate]
    for name in needing:
        if (show := _column(name, columns[name], values).show) not in ("clean", "robust"):
            raise RequestError(
                f"{path}: gates.{name}: {MAX_DROP} is of clean or robust accuracy, not {show}"
            )
    if not needing and not table:
        return None
    if not isinstance(table.get("results"), str):
        what = f"{MAX_DROP} needs [baseline]" if needing else "[baseline] is a table"
        raise RequestError(f'{path}: {what} with results = "PATH"')
    found = Path(table["results"])
    if not found.exists():
        raise RequestError(f"{path}: baseline.results: there is no {found}")
    return found


def _stages(
    values: Mapping[str, Any], rows: Mapping[str, Any], columns: Mapping[str, Any]
) -> list[Stage]:
    """Return the stages, those of the rows with models of their own first."""
    found: list[Stage] = []
    models: dict[str, Stage | None] = {}
    for name, row in sorted(rows.items(), key=lambda item: "of" in item[1]):
        if "of" not in row:
            made = [] if "checkpoint" in row else _model_stages(name, row, values)
            models[name] = made[-1] if made else None
            found += made
        model = models[row.get("of", name)]
        finished = rows[row.get("of", name)].get("checkpoint")
        for column, asked in columns.items():
            command = _command(asked)
            own = row.get(command, {})
            if own is False or column not in row.get("columns", columns):
                continue
            options = _options(values, command, asked[command], own)
            if options.get("protocol") == KNOWN and "n-attacked" not in asked[command]:
                options.pop("n-attacked", None)  # the row's is for the columns beside this one
            found.append(Stage(f"{name}/{column}", command, options, model, finished))
            if asked.get(AUDIT, False) is not False:
                found.append(audit_of(found[-1], asked[AUDIT], f"columns.{column}"))
    return found


def _model_stages(name: str, row: Mapping[str, Any], values: Mapping[str, Any]) -> list[Stage]:
    """Return `convert`, and `train` where the recipe or the row has options for it."""
    options = _options(values, "convert", row.get("convert", {}))
    if not isinstance(options.get("name"), str):
        raise RequestError(f"rows.{name} has no network; give [convert] a name")
    if str(options["name"]).startswith("-"):
        raise RequestError(f"rows.{name}: {options['name']!r} is an option, no network's name")
    stages = [Stage(f"{name}/convert", "convert", options, None)]
    train = row.get("train", {} if "train" in values else False)
    if train is not False:
        options = _options(values, "train", train)
        stages.append(Stage(f"{name}/train", "train", options, stages[0]))
    return stages


def _options(
    values: Mapping[str, Any], command: str, *more: Mapping[str, Any]
) -> dict[str, str | bool]:
    """Return a stage's options: those of all commands, of the command, then the nearer ones."""
    options: dict[str, Any] = values["all"][command]
    for table in (values.get(command, {}), *more):
        options = merged(options, table)
    for name in options:
        if not _OPTION.fullmatch(name):
            raise RequestError(
                f"{command}: {name!r} is no option; options are small letters and dashes"
            )
    return {name: option_text(command, name, value) for name, value in options.items()}


def _dealt(
    options: Mapping[str, Any], takes: Takes | None, where: str
) -> dict[str, dict[str, Any]]:
    """Return what each command gets of `[all]`: the options that it takes.

    Raises:
        RequestError: No command takes one of them.
    """
    if takes is None:
        return {command: dict(options) for command in COMMANDS}
    _require_known(options, sorted(set().union(*(takes[one] for one in COMMANDS))), where)
    return {
        command: {name: value for name, value in options.items() if name in takes[command]}
        for command in COMMANDS
    }


def _column(name: str, column: Mapping[str, Any], values: Mapping[str, Any]) -> Column:
    command = _command(column)
    options = _options(values, command, column[command])
    stated = [f"{key}={options[key]}" for key in ("eps", "c") if key in options]
    if stated and options.get("pixel-range", "0:1") != "0:1":
        stated.append(f"in {options['pixel-range']}")
    label = " ".join([str(options["method"]), *stated]) if "method" in options else name
    show = column.get("show", SHOWN[command][0])
    return Column(name, str(column.get("label", label)), command, show)


def _command(column: Mapping[str, Any]) -> str:
    return next(command for command in MEASURING if command in column)


def _present(values: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """Return the rows or columns that are not switched off by `NAME = false`."""
    present = {name: one for name, one in values.get(kind, {}).items() if one is not False}
    for name, one in present.items():
        own = ("checkpoint",) if kind == "rows" else ()
        _require_table(one, f"{path}: {kind}.{name}", own)
    if not present:
        raise RequestError(f"{path} has no {kind}; give it [{kind}.NAME]")
    return present


def _check_row(
    name: str, row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], where: str
) -> None:
    _check_name(name, where, ("stages",))
    _require_known(row, _ROW, where)
    for command in COMMANDS:
        if row.get(command) is not False or command == "convert":
            _require_table(row.get(command, {}), f"{where}.{command}")
    if "checkpoint" in row:
        _check_checkpoint(row, where)
    if "of" not in row:
        return
    if not isinstance(row["of"], str) or row["of"] not in rows:
        raise RequestError(
            f"{where}: of = {row['of']!r} is no row; {nearest(str(row['of']), rows)}"
        )
    if "of" in rows[row["of"]]:
        raise RequestError(f"{where}: the row {row['of']!r} has no model of its own; name its 'of'")
    if "convert" in row or "train" in row:
        raise RequestError(f"{where}: a row with 'of' has no convert and no train of its own")


def _check_checkpoint(row: Mapping[str, Any], where: str) -> None:
    """Require a finished model that nothing else of the row would make or change."""
    if not isinstance(row["checkpoint"], str) or row["checkpoint"].startswith("-"):
        raise RequestError(f"{where}: checkpoint is the path of a file of rlskit's")
    others = [key for key in ("of", "convert", "train") if row.get(key, False) is not False]
    if others:
        raise RequestError(f"{where}: a row with a checkpoint has no {' and no '.join(others)}")
    if not Path(row["checkpoint"]).is_file():
        raise RequestError(f"{where}: there is no checkpoint {row['checkpoint']}")


def _check_choice(chosen: Any, columns: Mapping[str, Any], where: str) -> None:
    """Require a list of columns that there are, if only switched off."""
    if not isinstance(chosen, list):
        raise RequestError(f"{where} is a list of names of columns, not {chosen!r}")
    for name in chosen:
        if not isinstance(name, str) or name not in columns:
            raise RequestError(f"{where}: {name!r} is no column; {nearest(str(name), columns)}")


def _check_measured(
    gates: Sequence[Gate], rows: Sequence[str], stages: Collection[str], where: str
) -> None:
    """Require that every gate has something to decide on: one that has not would look met."""
    for gate in gates:
        missing = [row for row in gate.rows or rows if f"{row}/{gate.column}" not in stages]
        if missing and (gate.rows or len(missing) == len(rows)):
            raise RequestError(
                f"{where}: gates.{gate.column}: the row {missing[0]} does not measure it, so there "
                "is nothing to decide on"
            )


def _check_column(name: str, column: Mapping[str, Any], where: str) -> None:
    _check_name(name, where, ("convert", "train"))
    _require_known(column, _COLUMN, where)
    commands = [command for command in MEASURING if command in column]
    if len(commands) != 1:
        raise RequestError(f"{where} needs one of {', '.join(MEASURING)}, not {len(commands)}")
    _require_table(column[commands[0]], f"{where}.{commands[0]}")
    shown = SHOWN[commands[0]]
    if column.get("show", shown[0]) not in shown:
        raise RequestError(
            f"{where}: show = {column['show']!r} is unknown; {nearest(str(column['show']), shown)}"
        )


def _check_paper(paper: Mapping[str, Any], values: Mapping[str, Any], path: Path) -> None:
    """Require numbers of rows and columns that there are, if only switched off."""
    for row, numbers in paper.items():
        if row not in values["rows"]:
            hint = nearest(row, values["rows"])
            raise RequestError(f"{path}: paper.{row} is no row; {hint}")
        _require_table(numbers, f"{path}: paper.{row}")
        _require_known(numbers, tuple(values["columns"]), f"{path}: paper.{row}")
        for column, number in numbers.items():
            if not isinstance(number, str) and not _finite(number):
                raise RequestError(
                    f"{path}: paper.{row}.{column} is a number or a text, not {number}; leave out "
                    "what the paper does not have"
                )


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST_NUMBER


def _check_name(name: str, where: str, reserved: Sequence[str]) -> None:
    if not _NAME.fullmatch(name) or name in reserved:
        raise RequestError(
            f"{where}: the name stands in paths and patterns, so it is made of letters, digits, - "
            f"and _, and is not {' or '.join(reserved)}"
        )


def _require_known(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise RequestError(f"{where}: {key!r} is unknown; {nearest(key, known)}")


def _require_table(value: Any, where: str, own: Sequence[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} is a table of values, not {value!r}")
    ours = [key for key in _OURS if key in value and key not in own]
    if ours:
        raise RequestError(f"{where}: {ours[0]} is decided by `rlskit run`; leave it out")
