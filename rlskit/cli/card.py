"""`rlskit card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import OUTPUT, WHAT, ForceOption, QuietOption, under
from rlskit.cli.show import note, say


def card(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of run, attack or eval, of one model."),
    ],
    checkpoint: Annotated[
        Path | None,
        under(WHAT, "The model's file; by default the one that the runs name.", "--checkpoint"),
    ] = None,
    name: Annotated[
        str | None, under(WHAT, "Of the model; by default its file's.", "--name")
    ] = None,
    benchmark: Annotated[
        str | None,
        under(
            WHAT,
            "OWNER/NAME of the data set on Hugging Face's Hub that the images are of; also writes "
            ".eval_results/.",
            "--benchmark",
        ),
    ] = None,
    out: Annotated[Path, under(OUTPUT, "Folder to write to.", "--out", "-o")] = Path("card"),
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write what registries want: a model card, CycloneDX, an in-toto test result."""
    import rlskit

    found = rlskit.write_card(
        runs, out, checkpoint=checkpoint, name=name, benchmark=benchmark, force=force
    )
    for file in found.files:
        say(str(file))
    for one in found.notes:
        note(f"left out: {one}", quiet=quiet)
