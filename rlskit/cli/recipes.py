"""`rlskit recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlskit.cli.show import say
from rlskit.errors import RequestError
from rlskit.text import nearest


def recipes(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a glob.")] = "*",
) -> None:
    """List the recipes that rlskit brings, for `rlskit run NAME`, and what they cost."""
    import fnmatch

    from rlskit.recipes import ABOUT, shipped, title

    known = shipped()
    names = [name for name in known if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not names:
        raise RequestError(f"no recipe's name matches {pattern!r}; {nearest(pattern, known)}")
    width = max(map(len, names))
    for folder, about in ABOUT.items():
        own = [name for name in names if name.rpartition("/")[0] == folder]
        if own:
            say(f"{folder}: {about}")
        for name in own:
            say(f"  {name:{width}}  {title(known[name])}")
    say("rlskit run NAME --dry-run tells what one costs here; docs/recipes.md, which data it needs")
