"""`rlskit run`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.ending import check_values
from rlskit.cli.flags import MACHINE, OUTPUT, ProgressOption, QuietOption, one_of, under
from rlskit.cli.forecast import forecast_run, said
from rlskit.cli.show import check_json, note, print_table, say, stdout
from rlskit.errors import RequestError
from rlskit.text import printable

if TYPE_CHECKING:
    from rlskit.recipes import Recipe


FORMATS = ("text", "github")

LONG = ("train", "attack", "eval", "diversity", "audit")
"""The commands of a stage that show how far they are."""


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            autocompletion=complete.recipes,
            help="A TOML file, docs/recipes.md, or a name of `rlskit recipes`.",
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value: train.epochs=1."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="A stage, or a glob over their names: rls/pgd, 'rls/*'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and what it would cost.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the code that the recipe names, FILE.py:factory.")
    ] = False,
    out: Annotated[
        Path | None,
        under(OUTPUT, "Folder of the run; runs/FOLDER-FILE by default.", "--out", "-o"),
    ] = None,
    shard: Annotated[
        str | None,
        under(
            MACHINE,
            "Do this part of every cell, as 0/3, 1/3, 2/3 beside each other in one --out; the same "
            "without it makes the tables. auto: what torchrun or a Slurm array says.",
            "--shard",
        ),
    ] = None,
    json_to: Annotated[
        str | None,
        under(OUTPUT, "Also write all results to FILE, or - (stdout).", "--json"),
    ] = None,
    force: Annotated[
        bool,
        under(OUTPUT, "Replace the FILE of --json if it exists.", "--force"),
    ] = False,
    output_format: Annotated[
        str,
        under(
            OUTPUT,
            "text, or github: also annotations of the verdicts.",
            "--output-format",
            callback=one_of("--output-format", FORMATS),
        ),
    ] = FORMATS[0],
    progress: ProgressOption = None,
    quiet: QuietOption = False,
) -> int:
    """Run the stages of a recipe that are not finished yet; print its table beside the paper's."""
    from rlskit import recipes
    from rlskit.report import REPORTS, github_annotations, rich_grid
    from rlskit.results.verdict import PASS
    from rlskit.storage.files import write_text

    check_json(json_to, force)
    if shard is not None and json_to is not None:
        raise RequestError("a shard has no result; leave --json to `rlskit run` without --shard")
    recipe = recipes.found(recipe)
    execute = _executor(quiet, progress)
    if dry_run:
        _print_plan(recipes.load(recipe, sets or (), taken()), only, out, trust=trust)
        return 0
    done = recipes.run(
        recipe, execute=execute, check=check, takes=taken(), sets=sets or (), only=only, out=out,
        trust=trust, shard=shard, note=lambda line: note(line, quiet=quiet),
        ahead=None if quiet else partial(forecast_run, execute=_executor(quiet=True)),
    )  # fmt: skip
    text = (done.folder / "results.json").read_text(encoding="utf-8")
    if json_to == "-":
        print(text, end="", file=stdout())
    else:
        if json_to is not None:
            write_text(Path(json_to), text, force=force)
        table = recipes.grid(done.recipe, done.folder, recipes.is_finished)
        print_table(rich_grid(table))
        for sentence in table.notes:
            say(printable(sentence))
        note(f"everything behind the table: {done.folder}", quiet=quiet)
    for sentence in done.met:
        note(sentence, quiet=quiet)
    for sentence in done.not_met:
        note(sentence, loud=True)
    for verdict in done.verdicts:
        note(verdict.sentence, loud=True)
    for line in done.beside.sentences:
        note(line, quiet=quiet)
    if done.code == 0 and any(verdict.verdict != PASS for verdict in done.verdicts):
        note("what --only left out decides nothing: this is no run that passed", loud=True)
    if output_format == "github":
        for line in github_annotations(done.verdicts):
            typer.echo(line, file=sys.stderr if json_to == "-" else stdout())
    note(f"report: {done.folder / REPORTS[0]}", quiet=quiet)
    return done.code


def _executor(quiet: bool, progress: str | None = None) -> Callable[[list[str]], int]:
    """Return what runs one command line in this process; stdout is kept for the table."""
    shown = () if progress is None else ("--progress", progress)

    def execute(arguments: list[str]) -> int:
        from rlskit import cli
        from rlskit.runtime.together import apart

        if quiet and "--quiet" not in arguments:
            arguments = [*arguments, "--quiet"]
        if arguments[0] in LONG:
            arguments = [*arguments, *shown]
        with apart(), contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):
            return cli.run(arguments)

    return execute


def taken() -> dict[str, set[str]]:
    """Return the options that each command takes, as a recipe names them; `name` is a network."""
    from rlskit.cli.app import alone
    from rlskit.recipes import COMMANDS

    return {
        command: {option.removeprefix("--") for one in alone(command).params for option in one.opts}
        for command in COMMANDS
    }


def check(arguments: list[str]) -> None:
    """Have the command's own parser read a command line, without running it.

    Raises:
        RequestError: It refuses.
    """
    from rlskit.cli.app import alone

    name, *rest = arguments
    try:
        check_values(alone(name).make_context(name, rest).params)
    except RequestError:
        raise
    except typer.Exit as error:
        raise RequestError(f"{name} would only show its help") from error
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer's own usage errors have one
            raise
        raise RequestError(" ".join(error.format_message().split())) from error


def _print_plan(recipe: Recipe, only: str | None, out: Path | None, *, trust: bool) -> None:
    """Print every stage's command, whether it is up to date, and what it would cost."""
    from rlskit import recipes

    recipes.require_trust(recipe, trust)
    folder = out or recipes.default_folder(recipe)
    recipes.check_stages(recipe, folder, check)
    chosen = recipes.select(recipe, only)
    estimate = recipes.estimate(recipe, _executor(quiet=True), trust=trust)
    to_run = [s.name for s in chosen if not recipes.is_finished(s, folder)]
    for stage in chosen:
        say(f"{stage.name}: {'to run' if stage.name in to_run else 'up to date'}")
        say(f"  {printable(recipes.command_line(stage, folder))}")
        hours = estimate.hours[stage.name]
        say(f"  {said(estimate.costs[stage.name], hours)}")
    total, hours = estimate.total(to_run)
    unknown = [name for name in to_run if estimate.costs[name] is None]
    known = None if unknown and unknown == to_run else total
    say(f"to run: {len(to_run)} of {len(chosen)} stages, {said(known, hours)}")
    if unknown:
        say(f"not counted, because nothing tells their cost: {', '.join(unknown)}")
    say(f"times are on {estimate.device}, from one batch per row, measured now")
