"""All subcommands in one application, and its entry point."""

from __future__ import annotations

import functools
import os
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
    merge,
    models,
    recipe,
    recipes,
    report,
    submit,
    train,
    verify,
)
from rlskit.cli.defaults import announced, config, defaults
from rlskit.cli.ending import apart_from_its_number, ended, flushed, guarded
from rlskit.cli.help import GroupedCommand, epilog
from rlskit.cli.option_sets import flat
from rlskit.cli.show import note, say
from rlskit.errors import RequestError
from rlskit.runtime.threads import settle_threads

COMMANDS: dict[str, Callable[..., int | None]] = {
    "convert": convert.convert,
    "train": train.train,
    "attack": attack.attack,
    "attacks": attacks.attacks,
    "eval": evaluate.evaluate,
    "merge": merge.merge,
    "submit": submit.submit,
    "diversity": diversity.diversity,
    "compare": compare.compare,
    "audit": audit.audit,
    "models": models.models,
    "inspect": inspect.inspect,
    "export": export.export,
    "doctor": doctor.doctor,
    "init": init.init,
    "run": recipe.run,
    "recipes": recipes.recipes,
    "report": report.report,
    "baseline": baseline.baseline,
    "verify": verify.verify,
    "card": card.card,
}
COMPLETE = "_RLSKIT_COMPLETE"
"""The variable by which a shell asks what may come next."""

_OF_SHELLS = {"--install-completion", "--show-completion"}
"""Options of Typer's own, which end the process."""

_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),  # noqa: ARG001
    show_config: bool = typer.Option(  # noqa: ARG001
        False, "--show-config", help="Show a command's options and where each is from, and exit."
    ),
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
    if os.environ.get(COMPLETE) or {*sys.argv[1:2]} & _OF_SHELLS:
        group()(prog_name="rlskit")  # which ends the process
    settle_threads()  # which must come before torch
    sys.stdout = apart_from_its_number(sys.stdout)
    code = flushed(run(sys.argv[1:], own_defaults=True))
    sys.stdout = sys.stderr  # for what prints while the process ends
    sys.exit(code)


def run(arguments: list[str], *, own_defaults: bool = False) -> int:
    """Run one command; return its exit code. Errors are one sentence on stderr.

    Args:
        arguments: What is typed behind `rlskit`.
        own_defaults: Let the environment and the files of the working folder give options that are
            not among them. The stages of a recipe take none.
    """
    if "--version" in arguments[:1]:
        arguments = ["--version", "models"]  # Typer wants a subcommand
    debug, shown = "--debug" in arguments, "--show-config" in arguments
    arguments = [one for one in arguments if one not in ("--debug", "--show-config")]
    name, rest = "".join(arguments[:1]), arguments[1:]

    def call() -> Any:
        if name not in COMMANDS:
            return group()(arguments, prog_name="rlskit", standalone_mode=False)
        command = alone(name)
        found = defaults(command, rest) if own_defaults or shown else {}
        given: dict[str, Any] = {one: default.value for one, default in found.items()}
        spoken: dict[str, Any] = {"prog_name": f"rlskit {name}", "default_map": given}
        try:
            if shown:
                context = command.make_context(f"rlskit {name}", rest, default_map=given)
                return say("\n".join(config(command, context, found)))
            if sentence := announced(found, rest):
                note(sentence)
            return command(rest, standalone_mode=False, **spoken)
        except Exception as error:
            option = getattr(error, "param", None)  # of Typer's own usage errors
            if option is None or option.name not in found:
                raise
            message = error.format_message()  # type: ignore[attr-defined]
            raise RequestError(f"{message} ({found[option.name].origin})") from error

    return ended(call, name, debug=debug)
