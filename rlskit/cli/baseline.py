"""`rlskit baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import OUTPUT, ForceOption, under
from rlskit.cli.show import say


def baseline(
    run: Annotated[Path, typer.Argument(help="The folder that `rlskit run` wrote.")],
    out: Annotated[Path, under(OUTPUT, "The file to write.", "--out", "-o")] = Path("baseline.zip"),
    force: ForceOption = False,
) -> None:
    """Pack a run's results into one small file, for [baseline] of later runs."""
    from rlskit.recipes import export_baseline

    cells = export_baseline(run, out, force=force)
    say(f"{out}: {cells} cells, {out.stat().st_size / 1024:.0f} KiB")
