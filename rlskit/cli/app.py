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
    baseline,
    card,
    compare,
    convert,
    diversity,
    doctor,
    evaluate,
    export,
    init,
    inspect,
    models,
    recipe,
    report,
    train,
    verify,
)
from rlskit.cli.ending import ended, flushed, guarded
from rlskit.cli.help import GroupedCommand, epilog
from rlskit.cli.option_sets import flat
from rlskit.runtime.threads import settle_threads

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
    "doctor": doctor.doctor,
    "init": init.init,
    "run": recipe.run,
    "report": report.report,
    "baseline": baseline.baseline,
    "verify": verify.verify,
    "card": card.card,
}
_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),  # noqa: ARG001
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    """Attack-versus-defense evaluation of image classifiers, with Random Layer Sampling."""
    if version:
        from rlskit import __version__

        typer.echo(f"rlskit {__version__}")
        raise typer.Exit


@functools.cache
def group() -> Any:
    """Return Typer's object of all commands."""
    app = typer.Typer(name="rlskit", no_args_is_help=True, **_SETTINGS)
    app.callback()(options)
    for name in COMMANDS:
        _add(app, name)
    return typer.main.get_command(app)


@functools.cache
def alone(name: str) -> Any:
    """Return Typer's object of one command, which is quicker to make and to ask for its help."""
    app = typer.Typer(add_completion=False, **_SETTINGS)
    _add(app, name)
    return typer.main.get_command(app)


def _add(app: typer.Typer, name: str) -> None:
    command = guarded(flat(COMMANDS[name]))
    app.command(name, cls=GroupedCommand, epilog=epilog(name))(command)


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
    name = "".join(arguments[:1])

    def call() -> Any:
        known, spoken, rest = (
            (alone(name), f"rlskit {name}", arguments[1:])
            if name in COMMANDS
            else (group(), "rlskit", arguments)
        )
        return known(rest, prog_name=spoken, standalone_mode=False)

    return ended(call, name, debug=debug)
