"""`rlskit export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import (
    DEFAULT_CHECKPOINT,
    OUTPUT,
    CheckpointArgument,
    ForceOption,
    ModelOption,
    QuietOption,
    under,
)
from rlskit.cli.show import note
from rlskit.errors import RequestError


def export(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    plan: Annotated[str | None, typer.Option(help="One bank index per layer: 0,1,0,...")] = None,
    bank: Annotated[int | None, typer.Option(help="The pure plan m,m,...,m.")] = None,
    out: Annotated[Path, under(OUTPUT, "The .safetensors to write.", "--out", "-o")] = Path(
        "exported.safetensors"
    ),
    model: ModelOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one sampled model as an ordinary state dict that its library loads strictly."""
    import rlskit

    if (plan is None) == (bank is None):
        raise RequestError("say which sampled model: --plan 0,1,0,... or --bank 0")
    if os.path.realpath(out) == os.path.realpath(checkpoint):
        raise RequestError(f"--out {out} would replace the checkpoint; name another file")
    banked = rlskit.load(checkpoint, architecture=model)
    chosen = [bank] * banked.num_layers if bank is not None else _indices(plan or "")
    rlskit.export(banked, chosen, out, force=force)
    note(f"{out}: {banked.card.architecture.label}, plan {','.join(map(str, chosen))}", quiet=quiet)


def _indices(text: str) -> list[int]:
    try:
        return list(map(int, text.split(",")))
    except ValueError:
        raise RequestError(f"--plan {text!r} is no list of bank indices such as 0,1,0") from None
