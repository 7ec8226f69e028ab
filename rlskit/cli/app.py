"""All subcommands in one application, and its entry point."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

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
from rlskit.cli.ending import ended, flushed, guarded
from rlskit.runtime.threads import settle_threads

app = typer.Typer(
    name="rlskit",
    help="Attack-versus-defense evaluation of image classifiers, with Random Layer Sampling.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., int | None]] = {
    "convert": convert.convert,
    "train": train.train,
    "attack": attack.attack,
    "attacks": attacks.attacks,
    "eval": evaluate.evaluate,
    "diversity": diversity.diversity,
    "compare": compare.compare,
    "audit": audit.audit,
    "models": models.models,
    "inspect": inspect.inspect,
    "export": export.export,
    "run": recipe.run,
}
for name, command in COMMANDS.items():
    app.command(name)(guarded(command))


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


@functools.cache  # building it takes as long as reading ten command lines
def group() -> Any:
    """Return Typer's object of all commands."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line and exit with the documented code."""
    settle_threads()  # which must come before torch
    sys.exit(flushed(run(sys.argv[1:])))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors are one sentence on stderr."""
    if "--version" in arguments[:1]:
        arguments = ["--version", "models"]  # Typer wants a subcommand
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    return ended(
        lambda: app(arguments, prog_name="rlskit", standalone_mode=False),
        "".join(arguments[:1]),
        debug=debug,
    )
