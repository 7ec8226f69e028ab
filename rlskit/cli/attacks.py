"""`rlskit attacks`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.show import print_table
from rlskit.errors import RequestError
from rlskit.text import nearest

_CAPTION = (
    "engines: what --engine may be; pixle and onepixel run on torchattacks only. "
    r"The extras rlskit\[torchattacks] and rlskit\[adv-lib] bring the other two."
)


def attacks(
    pattern: Annotated[
        str, typer.Argument(autocompletion=complete.methods, help="Part of a name, or a glob.")
    ] = "*",
) -> None:
    """List the attacks: norm, what they need to know, randomness, options and their defaults."""
    import fnmatch

    from rich.table import Column, Table

    from rlskit.attacks import ATTACKS, ENGINES
    from rlskit.cli.wording import flag_of

    names = [name for name in ATTACKS if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not names:
        raise RequestError(f"no attack's name matches {pattern!r}; {nearest(pattern, ATTACKS)}")
    table = Table(
        Column("method", overflow="fold"),
        "norm",
        "needs",
        "random",
        "engines",
        "options",
        show_lines=True,
        caption=_CAPTION,
        caption_justify="left",
    )
    for name in names:
        known = ATTACKS[name]
        kind = "" if known.has_budget else "least "
        options = [
            f"{flag_of(option)} {'' if default is None else default}".strip()
            for option, default in known.defaults.items()
        ]
        table.add_row(
            f"{name}\n{known.title}\n{known.paper}",
            kind + ", ".join(known.norms),
            known.needs,
            "yes" if known.random else "no",
            "torchattacks"
            if known.borrowed
            else "\n".join(["rlskit", *(name for name in ENGINES if known.of(name))]),
            "  ".join(options),
        )
    print_table(table)
