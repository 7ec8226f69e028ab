"""Running a recipe: what is finished and unchanged is left alone, the rest runs in order.

runs/FOLDER-FILE/
├── ROW/converted.safetensors, rls.safetensors    the row's model, before and after training
├── ROW/COLUMN/results.json                       a cell, with all that the command keeps beside it
├── ROW/COLUMN/audit.json                         of the cell's attack, where that was asked for
├── stages/ROW.STAGE.json                         a finished stage's fingerprint
├── .rlskit-new/                                  the same again, of stages that are not finished
├── recipe.json                                   says that the folder is a recipe's
├── table.md, results.json                        what was measured, and what became of the gates
└── report.html, summary.md, junit.xml            the same for people and CI servers, written last

A stage is run in `.rlskit-new`; what it would replace stays until it is whole.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rlskit.audit import AuditResult
from rlskit.errors import RequestError, UnmergedError, UntrustedError
from rlskit.recipes.against import NOTHING, Beside, beside
from rlskit.recipes.audited import audit_sentence, forget_audits, read_audit
from rlskit.recipes.beforehand import Held, check_comparable, required
from rlskit.recipes.cells import Cell, cells, grid, to_json
from rlskit.recipes.checking import check_options
from rlskit.recipes.judging import NOT_AUDITED, NOT_MEASURED, verdicts
from rlskit.recipes.looks import OVER
from rlskit.recipes.noted import StageError, is_as_written, is_finished, state_of, unmade
from rlskit.recipes.part_of_run import Part
from rlskit.recipes.recipe import Recipe, Takes, load
from rlskit.recipes.stages import AUDIT, Stage, typed
from rlskit.recipes.staging import Execute, call_again, run_stage, tidy
from rlskit.recipes.trust import require_trust
from rlskit.report import REPORTS, Origin, markdown_grid, read_reported, write_reports
from rlskit.results import NOT_MET, RESULTS, gate_sentence, read_results, unconfirmed
from rlskit.results.verdict import PASS, UNTRUSTED, Verdict, undecidable
from rlskit.runtime.sharding import Shard
from rlskit.storage.files import parse_json, write_text
from rlskit.storage.locks import in_turn, only_writer
from rlskit.text import nearest

MARKER = "recipe.json"
_FORMAT = "rlskit.recipe-run/1"

Check = Callable[[list[str]], None]
"""Raises `RequestError` where a command line is none that rlskit understands."""

Ahead = Callable[[Sequence[Stage], int, Path], None]
"""Told what is to run before it does; see `run`."""


@dataclass(frozen=True)
class Outcome:
    """What a run of a recipe ended with.

    Attributes:
        recipe: What was run.
        folder: Where everything is.
        code: 0; 1 where a gate was not met, or is undecided; 4 where its number is untrusted, or an
            audit failed.
        met: A sentence for each stage's own gate (`fail_under`) that was met, and for each audit
            that passed, led by the stage's name.
        not_met: Likewise for each that was not, or failed.
        verdicts: What became of the recipe's gates; those of cells that are not measured are
            undecided, and do not make `code` 1 where `only` left them out.
        beside: Its cells beside the baseline's.
    """

    recipe: Recipe
    folder: Path
    code: int
    met: tuple[str, ...] = ()
    not_met: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    beside: Beside = NOTHING


def run(
    path: str | Path,
    *,
    execute: Execute,
    check: Check | None = None,
    takes: Takes | None = None,
    sets: Sequence[str] = (),
    only: str | None = None,
    out: str | Path | None = None,
    trust: bool = False,
    shard: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    ahead: Ahead | None = None,
) -> Outcome:
    """Run a recipe; a second run of the same goes on where the first one ended.

    A stage whose fingerprint is that of its last finished run, and whose output is there, is
    skipped. One that was interrupted is continued by its command; any other starts afresh.

    Args:
        path: The TOML file.
        execute: Runs one command line.
        check: Looks at every command line before the first one runs.
        takes: What each command takes, as of `load`.
        sets: `KEY=VALUE` changes.
        only: A stage, or a glob over their names: `rls/pgd`, `rls/*`.
        out: Folder of the run; by default `default_folder`.
        trust: Run the code that the recipe names; without it, only what `sets` names.
        shard: Do this part of the blocks of every cell, as `0/3`, beside the other shards in one
            folder; the same call without it then makes the tables, and decides on the gates.
        note: Told what happens, a line at a time.
        ahead: Called before the first stage with those that are to run, the number of those that
            are up to date, and the folder.

    Raises:
        RequestError: The recipe, a change, `only` or the folder is wrong, or the recipe names code
            and is not trusted.
        StageError: A command failed or was interrupted; what is finished is kept.
        UnmergedError: It was a shard, which is done.
    """
    part = None if shard is None else Shard.read(shard)
    recipe = load(path, sets, takes)
    require_trust(recipe, trust)
    folder = default_folder(recipe) if out is None else Path(out)
    check_stages(recipe, folder, check)
    chosen = select(recipe, only)
    _refuse_foreign(folder)
    _refuse_itself(recipe, folder)
    if part is not None:
        _do_part(Part(recipe, folder, part, execute, note), chosen)
    with only_writer(folder):
        _claim(folder, recipe)
        call_again(chosen, folder)
        held, untrusted = required(recipe), {}
        if ahead is not None:
            to_run = [stage for stage in chosen if not is_finished(stage, folder)]
            ahead(to_run, len(chosen) - len(to_run), folder)
        for number, stage in enumerate(chosen, 1):
            try:
                if stage.about not in untrusted:  # else there is nothing to audit
                    held = _checked(stage, recipe, folder, held)
                    _bring_up_to_date(stage, folder, execute, f"[{number}/{len(chosen)}]", note)
            except StageError as error:
                if error.exit_code != UntrustedError.exit_code or not recipe.gated(stage):
                    raise
                what = "its audit" if stage.command == AUDIT else "the stage"
                untrusted[stage.about] = f"{what} ended with exit code 4, and said why"
        tidy(folder)
        table = markdown_grid(grid(recipe, folder, is_finished))
        write_text(folder / "table.md", table, force=True)
        found = _outcome(recipe, folder, chosen, untrusted)
        document = to_json(recipe, folder, is_finished, found.verdicts, found.beside.fallen)
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write_text(folder / RESULTS, text, force=True)
        write_reports(read_reported(folder), folder, _origin(recipe))
        return found


def _do_part(part: Part, chosen: Sequence[Stage]) -> NoReturn:
    """Do a shard's part of a run.

    Raises:
        UnmergedError: It is done.
    """
    with only_writer(part.folder, part=f"shard-{part.shard.name}"):
        with in_turn(part.folder):
            if not all(is_finished(stage, part.folder) for stage in chosen):
                _claim(part.folder, part.recipe)
        part.finish(chosen)
    raise UnmergedError(
        f"shard {part.shard} is done; once all {part.shard.count} are, the same `rlskit run` "
        "without `shard` makes the tables and decides on the gates"
    )


def default_folder(recipe: Recipe) -> Path:
    """Return `runs/FOLDER-FILE`, so that recipes/small/x.toml and recipes/paper/x.toml differ."""
    return Path("runs") / f"{recipe.path.resolve().parent.name}-{recipe.path.stem}"


def command_line(stage: Stage, folder: Path) -> str:
    """Return a stage as it would be typed."""
    return typed(stage.arguments(folder))


def check_stages(recipe: Recipe, folder: Path, check: Check | None) -> None:
    """Have every command line, and what the attacks make of theirs, checked.

    Raises:
        RequestError: One is wrong; the message names the stage.
    """
    for stage in recipe.stages:
        try:
            if check is not None:
                check(stage.arguments(folder))
            check_options(stage)
        except RequestError as error:
            raise RequestError(f"{recipe.path}: stage {stage.name}: {error}") from error


def select(recipe: Recipe, only: str | None) -> list[Stage]:
    """Return the stages whose names match.

    Raises:
        RequestError: None does.
    """
    if only is None:
        return list(recipe.stages)
    chosen = [
        stage
        for stage in recipe.stages
        if any(fnmatch.fnmatchcase(name, only) for name in (stage.name, stage.about))
    ]
    if not chosen:
        hint = nearest(only, [stage.name for stage in recipe.stages])
        raise RequestError(f"`only` {only!r} matches no stage; {hint}")
    return chosen


def _bring_up_to_date(
    stage: Stage, folder: Path, execute: Execute, lead: str, note: Callable[[str], None]
) -> None:
    """Run a stage unless it is finished.

    Raises:
        RequestError: It needs another that is not finished.
        StageError: Its command failed.
    """
    if is_finished(stage, folder):
        note(f"{lead} {stage.name}: up to date")
        return
    if stage.needs is not None and not is_finished(stage.needs, folder):
        raise unmade(stage)
    note(f"{lead} {stage.name}: {command_line(stage, folder)}")
    run_stage(stage, folder, execute)


def _checked(stage: Stage, recipe: Recipe, folder: Path, held: Held) -> Held:
    """Return what of a baseline is not looked at yet, once the model of a stage is there.

    Raises:
        RequestError: Something of it is not what the model's cells will be measured on.
    """
    if stage.command == "convert":
        return held
    own = {one.name: one for one in recipe.stages if one.origin == stage.origin}
    check_comparable([one for one in own.values() if one.name in held], folder, held)
    return {name: one for name, one in held.items() if name not in own}


def _outcome(
    recipe: Recipe, folder: Path, stages: Sequence[Stage], untrusted: Mapping[str, str]
) -> Outcome:
    """Return what finished stages ended with, and what became of the recipe's gates."""
    gates: dict[bool, list[str]] = {True: [], False: []}
    for stage in recipe.stages:
        if stage.command == AUDIT or not is_finished(stage, folder):
            continue
        code = state_of(stage, folder).get("code")
        results = read_results(folder / stage.output) if "fail-under" in stage.options else []
        for result in results:
            if result.gate is not None:
                met = result.gate.verdict != NOT_MET
                gates[met].append(f"{stage.name}: {gate_sentence(result)}")
        if code and not any(line.startswith(f"{stage.name}: ") for line in gates[False]):
            gates[False].append(f"{stage.name}: gate not met")
    audits = _audits(recipe, folder)
    failed = {about: audit_sentence(one) for about, one in audits.items() if one and not one.passed}
    lines = cells(recipe, folder, is_finished)
    why = {**_unconfirmed(recipe, folder, lines), **failed, **untrusted}
    dropping = {one.name for one in recipe.stages if recipe.drops(one) and one.name not in why}
    compared = beside(lines, folder, recipe.baseline, dropping)
    found = verdicts(
        recipe.gates, lines, pairs=compared.pairs, untrusted=why,
        stages=[stage.name for stage in recipe.stages],
        over={
            stage.name: stage.budget.text
            for stage in recipe.stages
            if stage.budget is not None and state_of(stage, folder).get("ended") == OVER
        },
        unaudited=[about for about, one in audits.items() if one is None],
    )  # fmt: skip
    for about, one in audits.items():
        if one is not None:
            gates[one.passed].append(f"{about}: {audit_sentence(one)}")
    chosen = {stage.name for stage in stages}
    deciding = [
        one
        for one in found
        if one.reason not in (NOT_MEASURED, NOT_AUDITED)
        or f"{one.row}/{one.column}" in chosen  # else `only` knows
    ]
    code = int(bool(gates[False]) or any(one.verdict != PASS for one in deciding))
    if failed or any(one.verdict == UNTRUSTED for one in found):
        code = UntrustedError.exit_code
    return Outcome(recipe, folder, code, tuple(gates[True]), tuple(gates[False]), found, compared)


def _unconfirmed(recipe: Recipe, folder: Path, lines: Sequence[Sequence[Cell]]) -> dict[str, str]:
    """Return why numbers that a gate looks at tell nothing: `ROW/COLUMN` -> it."""
    found = {}
    for cell in (cell for line in lines for cell in line):
        stage = recipe.cell(cell.row.name, cell.column.name)
        if stage is None or cell.result is None or not recipe.gated(stage):
            continue
        why = unconfirmed(cell.result, folder / cell.name) or undecidable(cell.result)
        if not is_as_written(stage, folder):
            why = why or f"{folder / stage.output} was changed since it was written; remove it"
        found[cell.name] = why
    return {name: why for name, why in found.items() if why}


def _audits(recipe: Recipe, folder: Path) -> dict[str, AuditResult | None]:
    """Return what became of the audits: `ROW/COLUMN` -> what it found; None if not finished."""
    return {
        stage.about: read_audit(stage, folder) if is_finished(stage, folder) else None
        for stage in recipe.stages
        if stage.command == AUDIT
    }


def _origin(recipe: Recipe) -> Origin:
    """Return where the recipe's own data lie."""
    named = [stage.options.get("data-dir") for stage in recipe.stages]
    return Origin(data_dir=next((one for one in named if isinstance(one, str)), None), follow=True)


def _refuse_foreign(folder: Path) -> None:
    """Require a folder that is new, empty, or of a recipe's run, as what rlskit wrote in it says.

    Raises:
        RequestError: It holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; `out` names the folder of a recipe's run")
    if not folder.is_dir() or all(file.name.startswith(".rlskit") for file in folder.iterdir()):
        return  # but for locks, also of shards that begin just now
    notes = [folder / MARKER, *(folder / "stages").glob("*.json")]  # older runs have no marker
    if not any(map(_is_ours, notes)):
        raise RequestError(f"{folder} holds something else than a recipe's run; name another `out`")


def _refuse_itself(recipe: Recipe, folder: Path) -> None:
    """Require a baseline that is not the run: a model loses nothing against itself.

    Raises:
        RequestError: It is.
    """
    baseline = recipe.baseline
    if baseline is not None and baseline.name == RESULTS:
        baseline = baseline.parent
    if baseline is not None and baseline.resolve() == folder.resolve():
        raise RequestError(
            f"[baseline] results is in {folder}, which this run writes: it would be held against "
            "itself; keep a baseline elsewhere, as `rlskit baseline` writes it"
        )


def _is_ours(file: Path) -> bool:
    """Whether a file is one that says that a folder is of a recipe's run."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and (found.get("format") == _FORMAT or "fingerprint" in found)


def _claim(folder: Path, recipe: Recipe) -> None:
    """Write into a folder that it is of a recipe's run, and remove what is of an earlier one's end.

    A run that fails leaves no report.
    """
    marker = {"format": _FORMAT, "recipe": str(recipe.path)}
    write_text(folder / MARKER, json.dumps(marker) + "\n", force=True)
    for name in (RESULTS, *REPORTS):
        (folder / name).unlink(missing_ok=True)
    forget_audits(recipe.stages, folder)
