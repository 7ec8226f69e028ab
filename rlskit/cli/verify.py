"""`rlskit verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import (
    DATA,
    DEFAULT_CHECKPOINT,
    WHAT,
    DataDirOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    under,
)
from rlskit.cli.option_sets import Network
from rlskit.cli.show import check_json, note, say, stdout
from rlskit.cli.ticker import progress_shown


def verify(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of `attack --save-adversarial`.")
    ],
    checkpoint: Annotated[
        Path,
        under(WHAT, "The model that was attacked.", "--checkpoint", envvar="RLSKIT_CHECKPOINT"),
    ] = DEFAULT_CHECKPOINT,
    model: ModelOption = None,
    data: Annotated[
        str | None,
        under(
            DATA,
            "The clean images, where they are folder:PATH or npz:PATH: a path in the run's files "
            "is not followed.",
            "--data",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Score the saved images of an attack again: a number that carries its proof."""
    check_json(json_to, force)
    import rlskit
    from rlskit.storage.files import write_text

    network = Network(checkpoint, model, device).load()
    with progress_shown(None, quiet) as progress:
        found = rlskit.verify(run, network, data, data_dir=data_dir, progress=progress)
    text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
    if json_to == "-":
        print(text, end="", file=stdout())
    else:
        if json_to is not None:
            write_text(Path(json_to), text, force=force)
        for step in found.steps:
            say(f"{'holds' if step.holds else 'FAILS':7}{step.name:9}{step.detail}")
        if found.holds:
            say(found.sentence)
    if not found.holds:
        note(found.sentence, loud=True)
    return 0 if found.holds else 1
