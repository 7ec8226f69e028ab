"""`rlskit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import DATA, OUTPUT, DataDirOption, ForceOption, under
from rlskit.cli.show import say


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of run, attack, eval or diversity, results.json, an audit's JSON.",
        ),
    ],
    out: Annotated[Path, under(OUTPUT, "Folder to write to.", "--out", "-o")] = Path("report"),
    data: Annotated[
        str | None,
        under(
            DATA,
            "What the attacked images were before the attack, where they are folder:PATH or "
            "npz:PATH: a file of results names a path, but may come from anyone.",
            "--data",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    force: ForceOption = False,
) -> None:
    """Write report.html, summary.md and junit.xml of finished runs, side by side."""
    from rlskit.report import report_runs

    page = report_runs(runs, out, data=data, data_dir=data_dir, force=force)
    say(f"report: {page}")
