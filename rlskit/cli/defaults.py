"""Options that nobody typed: of the environment, and of a file in the working folder.

The command line wins over `RLSKIT_NAME`, that over `[defaults]` of rlskit.toml, that over
`[tool.rlskit]` of pyproject.toml. A default reaches a command as if it had been typed, so that it
is part of what identifies a run. None decides a gate, makes an attack weaker, or permits anything.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlskit.cli.flags import flag
from rlskit.errors import RequestError
from rlskit.text import nearest

NAMES = (
    "data", "data_dir", "limit", "repeats", "batch_size", "num_workers", "device", "seed",
    "progress", "quiet",
)  # fmt: skip
"""The options, by their names in Python, that may have a default of the user's."""

_DECIDING = ("data", "limit", "repeats", "batch_size", "device", "seed")
"""Those of which a number depends."""

_NOT_OF = {
    "train": ("limit", "batch_size"),  # there they decide what is learnt, not how it is measured
    "report": ("data",),  # what attacked images were before is nothing to assume
}

_BESIDE = {"adversarial": ("data", "limit")}
"""An option that is given -> those that it takes the place of."""

FILES = {"pyproject.toml": ("tool", "rlskit"), "rlskit.toml": ("defaults",)}
"""A file of the working folder -> the table in it; the later one wins."""


@dataclass(frozen=True)
class Default:
    """A value that nobody typed.

    Attributes:
        value: As it would be typed; True and False for switches.
        origin: Where it is from, for people.
    """

    value: str | bool
    origin: str


def defaults(command: Any, given: Sequence[str]) -> dict[str, Default]:
    """Return the defaults of the user's that a command takes.

    Args:
        command: Typer's object of it.
        given: What was typed behind its name.

    Raises:
        RequestError: A file cannot be read, or names what no default may be.
    """
    typed = {word.partition("=")[0] for word in given}
    hidden = {name for one, names in _BESIDE.items() if flag(one) in typed for name in names}
    takes = {one.name for one in command.params} - hidden - {*_NOT_OF.get(command.name, ())}
    if not takes & {*NAMES}:
        return {}
    found: dict[str, Default] = {}
    for file, place in FILES.items():
        found |= _of_file(Path(file), place)
    found |= _of_environment()
    return {name: default for name, default in found.items() if name in takes}


def announced(found: Mapping[str, Default], given: Sequence[str]) -> str:
    """Return what to say of the defaults that decide numbers; nothing where all is to be quiet.

    Args:
        found: The defaults.
        given: What was typed behind the command's name.
    """
    typed = {word.partition("=")[0] for word in given}
    if typed & {"-q", "--quiet", "-h", "--help"} or "quiet" in found:
        return ""
    said = [
        f"{flag(name)} {default.value} ({default.origin})"
        for name, default in found.items()
        if name in _DECIDING and flag(name) not in typed
    ]
    return f"not typed: {', '.join(said)}" if said else ""


def config(command: Any, context: Any, found: Mapping[str, Default]) -> Iterator[str]:
    """Yield a line for every option of a command: its value, and where that is from.

    Args:
        command: Typer's object of it.
        context: What its parser made of the command line and of the defaults.
        found: The defaults.
    """
    for one in command.params:
        if one.name == "help":
            continue
        source = context.get_parameter_source(one.name).name
        origin = {
            "COMMANDLINE": "command line",
            "ENVIRONMENT": f"environment, {one.envvar}",
            "DEFAULT_MAP": found[one.name].origin if one.name in found else "",
        }.get(source, "default")
        value = context.params[one.name]
        name = one.name.upper() if one.param_type_name == "argument" else one.opts[0]
        shown = "–" if value in (None, ()) else value
        yield f"{name:24}{shown!s:24}  {origin}"


def _of_environment() -> dict[str, Default]:
    named = {name: f"RLSKIT_{name.upper()}" for name in NAMES}
    return {
        name: Default(os.environ[variable], f"environment, {variable}")
        for name, variable in named.items()
        if os.environ.get(variable)
    }


def _of_file(path: Path, place: Sequence[str]) -> dict[str, Default]:
    """Return the defaults of a file's table; none where there is no such file or table.

    Raises:
        RequestError: It cannot be read, or names what no default may be.
    """
    where = f"{path} [{'.'.join(place)}]"
    table = _table(path, place)
    if not isinstance(table, dict):
        raise RequestError(f"{where} is a table of options, not {table!r}")
    known = {flag(name)[2:]: name for name in NAMES}
    for key, value in table.items():
        if key not in known:
            raise RequestError(
                f"{where}: {key!r} is no option with a default; {nearest(key, known)}"
            )
        if not isinstance(value, str | int | float):
            raise RequestError(f"{where}: {key} = {value!r} is no value for an option")
    return {
        known[key]: Default(value if isinstance(value, bool) else str(value), where)
        for key, value in table.items()
    }


def _table(path: Path, place: Sequence[str]) -> Any:
    try:
        found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's
        raise RequestError(f"{path} is no valid TOML: {error}") from error
    for key in place:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found
