"""`rlskit models`."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.show import say
from rlskit.errors import RequestError


def models(
    pattern: Annotated[
        str, typer.Argument(autocompletion=complete.networks, help="Part of a name, or a glob.")
    ] = "*",
) -> None:
    """List the names that `convert` knows."""
    from rlskit.models import list_models

    names = list_models(pattern)
    if not names:
        raise RequestError(f"no model's name matches {pattern!r}{_hint(pattern, list_models())}")
    say("\n".join(names))


def _hint(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
