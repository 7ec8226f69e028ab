"""What the command line prints: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rlskit.cli.wording import worded
from rlskit.errors import RequestError, RlskitError, UntrustedError
from rlskit.text import lines

if TYPE_CHECKING:
    from rich.table import Table

    from rlskit.cli.option_sets import RunOutput, Scoring
    from rlskit.results import Result

_WIDTH = 110  # of tables where no terminal says


@contextmanager
def run_folder(out: Path | None, name: str) -> Iterator[Path]:
    """Give the run's folder, by default a new one in runs/; say what is in it when interrupted."""
    from rlskit.results import clear, free_folder

    folder = out or free_folder(Path("runs"), name)
    try:
        yield folder
    except BaseException as error:
        if not isinstance(error, Exception):
            error.add_note(_left(folder, named=out is not None))
        if out is None and not _blocks(folder):
            with suppress(OSError, RlskitError):
                clear(folder)
                folder.rmdir()
        raise


def _blocks(folder: Path) -> int:
    """Return how many blocks of a run are finished."""
    return sum(1 for _ in folder.glob("**/blocks/*.safetensors"))


def _left(folder: Path, *, named: bool) -> str:
    """Return what an interrupted run leaves in its folder, and how it goes on."""
    count = _blocks(folder)
    if not count:
        return "no block was finished, so nothing is kept: run the same command again"
    blocks = "1 finished block is" if count == 1 else f"{count} finished blocks are"
    again = "the same command" if named else f"the same command with --out {folder}"
    return f"{blocks} kept in {folder}: {again} goes on"


def check_run(scoring: Scoring, output: RunOutput) -> None:
    """Require a gate, files and a folder that may be, before anything is read.

    Raises:
        RequestError: One may not.
        RunError: Another process writes in the folder.
    """
    check_gate(scoring.fail_under)
    asked = {
        "--fail-under": scoring.fail_under, "--json": output.json_to,
        "--per-image": output.per_image,
    }  # fmt: skip
    check_shard(scoring.shard, output.out, asked)
    check_json(output.json_to, output.force)
    check_out(output.out, output.force, gated=scoring.fail_under is not None)
    if output.per_image is not None:
        from rlskit.results import check_table

        check_table(output.per_image, force=output.force)


def check_shard(shard: str | None, out: Path | None, asked: Mapping[str, Any]) -> None:
    """Require that nothing is asked of a shard that only all of them together have.

    Args:
        shard: What was given.
        out: The run's folder.
        asked: Flag -> what was given to it, of what a shard does not have.

    Raises:
        RequestError: Something is.
    """
    if shard is None:
        return
    from rlskit.runtime.sharding import Shard

    Shard.read(shard)
    for flag in (flag for flag, value in asked.items() if value is not None):
        raise RequestError(f"a shard has no result; leave {flag} to `rlskit merge`")
    if out is None:
        raise RequestError("--shard needs --out, the folder that its blocks are kept in")


def show_run(
    results: Sequence[Result],
    folder: Path,
    scoring: Scoring,
    output: RunOutput,
    *,
    table: Table | None = None,
    more: str = "",
) -> int:
    """Show the results of a run as was asked; return its exit code.

    Args:
        results: What was found.
        folder: Of the run.
        scoring: Says which gate decides.
        output: Says where to.
        table: Shown in place of the accuracies.
        more: To be said after the table.
    """
    from rlskit.report import accuracy_table
    from rlskit.results import write_table

    results = gated(results, scoring.fail_under, folder)
    table = table or accuracy_table(results)
    show(table, results, json_to=output.json_to, force=output.force)
    if output.per_image is not None:
        write_table(folder, output.per_image, force=output.force)
    if more:
        note(more, quiet=output.quiet)
    note(f"results: {folder / 'results.json'}", quiet=output.quiet)
    return gate(results, quiet=output.quiet)


def check_out(out: Path | None, force: bool, *, gated: bool = False) -> None:
    """Require an `--out` that may become a run's folder, before anything is read.

    Raises:
        RequestError: It holds a finished run (of `gated`: one on which a gate decided) and `force`
            is not given, or is none of a run's.
        RunError: Another process writes in it.
    """
    from rlskit.storage.locks import refuse_busy

    if out is not None:
        refuse_busy(out)
        from rlskit.results import refuse_finished

        refuse_finished(out, force=force, gated=gated)


_stdouts: list[TextIO] = []
"""What results are printed on, of the commands that are at work, the innermost last."""


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for what is printed here: what a model's own code prints goes to stderr."""
    _stdouts.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdouts.pop()


def mute() -> None:
    """Let nothing that this process prints be seen."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    _stdouts[:] = [sys.stdout for _ in _stdouts]


def stdout() -> TextIO:
    """Return what results are printed on."""
    return _stdouts[-1] if _stdouts else sys.stdout


def say(text: str) -> None:
    """Print lines on stdout, control characters escaped."""
    import typer

    typer.echo(lines(text), file=stdout())


def note(message: str, *, quiet: bool = False, loud: bool = False) -> None:
    """Print a line on stderr, in the command line's words; a loud one is not silenced."""
    if quiet and not loud:
        return
    from rich.console import Console
    from rich.text import Text

    style = "bold red" if loud else ""
    Console(stderr=True, soft_wrap=True).print(Text(lines(worded(message)), style=style))


def show(table: Table, results: Sequence[Result], *, json_to: str | None, force: bool) -> None:
    """Print the table on stdout, or the JSON in its place with `--json -`; warnings on stderr."""
    from rlskit.results import dump
    from rlskit.storage.files import write_text

    for warning in dict.fromkeys(w for result in results for w in result.warnings):
        note(warning, loud=True)
    if json_to == "-":
        print(dump(list(results)), end="", file=stdout())
        return
    if json_to is not None:
        write_text(Path(json_to), dump(list(results)), force=force)
    print_table(table)


def check_json(json_to: str | None, force: bool) -> None:
    """Require a `--json` file that may be written, before anything runs.

    Raises:
        RequestError: It exists and `force` is not given, or it has no folder.
    """
    from rlskit.storage.files import refuse_existing

    if json_to not in (None, "-"):
        refuse_existing(Path(json_to), force)


def check_source(
    adversarial: Path | None, *, data: str | None, split: str, limit: int | None
) -> None:
    """Require that no other images are asked for beside a file of adversarial ones.

    Raises:
        RequestError: Some are.
    """
    asked = {"--data": data, "--split": None if split == "test" else split, "--limit": limit}
    flags = [flag for flag, value in asked.items() if value is not None]
    if adversarial is not None and flags:
        raise RequestError(f"--adversarial names the images; leave {flags[0]} out")


def print_table(table: Table) -> None:
    """Print a table on stdout, control characters escaped."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console(file=stdout())
    if not console.is_terminal:
        console = Console(file=stdout(), width=_WIDTH)
    shown = (Segment(lines(one.text), one.style) for one in console.render(table))
    with console.capture() as text:  # Rich itself takes a closed stdout for `sys.stdout`
        console.print(Segments(shown), end="")
    print(text.get(), end="", file=stdout())


def check_gate(fail_under: float | None) -> None:
    """Require a `--fail-under` that is a share, before anything runs.

    Raises:
        RequestError: It is not.
    """
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise RequestError(f"--fail-under is a share in [0, 1], such as 0.40, not {fail_under}")


def gated(results: Sequence[Result], fail_under: float | None, folder: Path) -> list[Result]:
    """Return the results with the gate's verdicts, which the run's `results.json` gets, too.

    Raises:
        UntrustedError: A warning says that they tell nothing.
    """
    from rlskit import results as finished
    from rlskit.results.verdict import undecidable

    if fail_under is None:
        return list(results)
    if warning := undecidable(results[-1]):
        raise UntrustedError(f"{warning} No gate can decide on that")
    found = [finished.gated(result, fail_under) for result in results]
    finished.write_results(folder, finished.dump(found))
    return found


def gate(results: Sequence[Result], *, quiet: bool) -> int:
    """Say whether the gates of results are met; return 1 where one is not, else 0."""
    from rlskit.results import NOT_MET, gate_sentence

    gates = [result for result in results if result.gate is not None]
    failed = [result for result in gates if result.gate and result.gate.verdict == NOT_MET]
    for result in gates:
        note(gate_sentence(result), quiet=quiet, loud=result in failed)
    return 1 if failed else 0
