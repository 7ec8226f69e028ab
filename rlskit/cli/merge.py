"""`rlskit merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import (
    OUTPUT,
    FailUnderOption,
    ForceOption,
    JsonOption,
    PerImageOption,
    QuietOption,
    under,
)
from rlskit.cli.option_sets import RunOutput, Scoring
from rlskit.cli.show import check_run, show_run
from rlskit.errors import RequestError


def merge(
    runs: Annotated[
        list[Path], typer.Argument(help="The folders that --shard wrote in; one if it was shared.")
    ],
    fail_under: FailUnderOption = None,
    out: Annotated[
        Path | None, under(OUTPUT, "Folder of the whole run; by default RUN.", "--out", "-o")
    ] = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    per_image: PerImageOption = None,
    quiet: QuietOption = False,
) -> int:
    """Make the result of a run of which --shard did the parts: the one of a single process."""
    scoring = Scoring(fail_under=fail_under)
    output = RunOutput(out=out, force=force, json_to=json_to, per_image=per_image, quiet=quiet)
    check_run(scoring, output)
    import rlskit
    from rlskit.recipes import MARKER
    from rlskit.report import abstention_table, broken_by, diversity_table, transfer_table

    for run in runs:
        if (run / MARKER).is_file():
            raise RequestError(f"{run} is of a recipe: `rlskit run` of the same merges its shards")
    results = rlskit.merge(runs, out=out, force=force, gated=fail_under is not None)
    (first, *_) = results
    tables = {
        abstention_table: first.abstention, diversity_table: first.agreement,
        transfer_table: first.transfer,
    }  # fmt: skip
    adaptive = first.attack is not None and first.attack.broken is not None
    return show_run(
        results, out or runs[0], scoring, output,
        table=next((table(first) for table, found in tables.items() if found), None),
        more=broken_by(first) if adaptive else "",
    )  # fmt: skip
