"""The command line: one file per subcommand, each parses, calls one library function, and prints.

Exit codes: 0 fine, 1 a gate was not met, 2 the request was wrong, 3 the run failed, 4 it ran but
cannot be trusted, 130 and 143 interrupted.
"""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType

import typer

from rlskit.cli import (
    attack,
    attacks,
    audit,
    compare,
    convert,
    diversity,
    evaluate,
    export,
    inspect,
    models,
    recipe,
    train,
)
from rlskit.errors import RlskitError
from rlskit.runtime import settle_threads

app = typer.Typer(
    name="rlskit",
    help="Attack-versus-defense evaluation of image classifiers, with Random Layer Sampling.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert")(convert.convert)
app.command("train")(train.train)
app.command("attack")(attack.attack)
app.command("attacks")(attacks.attacks)
app.command("eval")(evaluate.evaluate)
app.command("diversity")(diversity.diversity)
app.command("compare")(compare.compare)
app.command("audit")(audit.audit)
app.command("models")(models.models)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("run")(recipe.run)


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),  # noqa: ARG001
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    """Attack-versus-defense evaluation of image classifiers, with Random Layer Sampling."""
    if version:
        from rlskit import __version__

        typer.echo(f"rlskit {__version__}")
        raise typer.Exit


_RUN = "what was finished is kept: the same command with --out the run's folder goes on"
_KEPT = {
    "attack": _RUN,
    "eval": _RUN,
    "train": "the last epoch that was finished is kept",
    "run": "what was finished is kept: the same command goes on",
}
"""What an interrupted command leaves; the others leave nothing."""


class _TerminatedError(BaseException):
    """SIGTERM came."""


def main() -> None:
    """Run the command line and exit with the documented code."""
    settle_threads()  # which must come before torch
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors are one sentence on stderr."""
    if "--version" in arguments[:1]:
        arguments = ["--version", "models"]  # Typer wants a subcommand
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = int(app(arguments, prog_name="rlskit", standalone_mode=False) or 0)
        if code == 130:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code
    except RlskitError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(f"interrupted; {_kept(arguments)}", 130, debug)
    except _TerminatedError:
        return _fail(f"terminated; {_kept(arguments)}", 143, debug)
    except Exception as error:
        return _unexpected(error, debug)


def _kept(arguments: list[str]) -> str:
    return _KEPT.get("".join(arguments[:1]), "nothing is kept of it: run the same command again")


def _unexpected(error: Exception, debug: bool) -> int:
    """Map what libraries raise to a sentence and an exit code."""
    message = " ".join(str(error).split())
    if hasattr(error, "format_message"):  # Typer's own usage errors
        return _fail(error.format_message(), 2, debug)
    memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in message
    if isinstance(error, MemoryError) or memory:
        return _fail("out of memory; a smaller --batch-size needs less", 3, debug)
    if isinstance(error, OSError):
        return _fail(f"{error.strerror or message} ({error.filename or 'while writing'})", 3, debug)
    return _fail(f"{type(error).__name__}: {message} (a bug; --debug shows where)", 3, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = f"rlskit: {message}\n"
    sys.stderr.write(line.encode("utf-8", "backslashreplace").decode("utf-8"))
    return code


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _TerminatedError
