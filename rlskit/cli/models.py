"""`rlskit models`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlskit.cli.show import say
from rlskit.errors import RequestError


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a glob.")] = "*",
) -> None:
    """List the names that `convert` knows."""
    from rlskit.models import list_models

    names = list_models(pattern)
    if not names:
        raise RequestError(f"no model's name matches {pattern!r}")
    say("\n".join(names))
