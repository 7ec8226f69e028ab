"""`rlskit audit`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import (
    DEFAULT_CHECKPOINT,
    BatchSizeOption,
    CheckpointArgument,
    DataDirOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    ExpectCleanOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SeedOption,
    SkipBadOption,
    SplitOption,
)
from rlskit.cli.show import check_json, note, print_table, progress_bar
from rlskit.cli.wording import worded
from rlskit.errors import UntrustedError


def audit(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    method: Annotated[
        str,
        typer.Option(help="The attack under audit: pgd, bim, mifgsm, eotpgd, apgd-ce or apgd-dlr."),
    ] = "pgd",
    eps: Annotated[str | None, typer.Option(help="Its budget, 8/255.")] = None,
    steps: Annotated[int | None, typer.Option(help="Iterations.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Of pgd and its kin; eps / 10.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Runs per image; the worst counts.")] = None,
    loss: Annotated[str | None, typer.Option(help="What is ascended: ce, margin or dlr.")] = None,
    pixel_range: Annotated[
        str, typer.Option(help="Scale of the numbers above: 0:1, or the paper's -1:1.")
    ] = "0:1",
    n_attacked: Annotated[int, typer.Option(help="Draws in the attacker's view.")] = 1,
    protocol: Annotated[
        str | None,
        typer.Option(help="transfer (n = 1), multi, or eot (fresh draws at every step)."),
    ] = None,
    n_samples: Annotated[int | None, typer.Option(help="N: the defender's draws.")] = None,
    queries: Annotated[int, typer.Option(help="Of the square attack, per image.")] = 500,
    points: Annotated[int, typer.Option(help="Of the random search, per image.")] = 100,
    surrogate: Annotated[
        Path | None, typer.Option(help="A second checkpoint, to transfer from.")
    ] = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: Annotated[int, typer.Option("--limit", help="Images, spread evenly.")] = 100,
    skip_bad: SkipBadOption = False,
    batch_size: BatchSizeOption = 128,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    model: ModelOption = None,
    expect_clean: ExpectCleanOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Check whether the accuracy under an attack may be read as robustness; exit 4 if not."""
    import rlskit
    from rlskit.report import audit_table
    from rlskit.runtime.devices import choose_device
    from rlskit.storage.files import write_text

    check_json(json_to, force)
    place = choose_device(device)
    banked = rlskit.load(checkpoint, architecture=model).to(place)
    images = rlskit.load_data(
        data or banked.card.default_data(),
        split,
        data_dir=data_dir,
        download=download,
        limit=limit,
        skip_bad=skip_bad,
    )
    with progress_bar(quiet) as progress:
        found = rlskit.audit_model(
            banked, images, method=method, eps=eps, steps=steps, step_size=step_size,
            restarts=restarts, loss=loss, pixel_range=pixel_range, n_attacked=n_attacked,
            protocol=protocol, n_samples=n_samples, limit=None, queries=queries, points=points,
            surrogate=None if surrogate is None else rlskit.load(surrogate).to(place),
            batch_size=batch_size, seed=seed, expect_clean=expect_clean, progress=progress,
        )  # fmt: skip
    for warning in found.warnings:
        note(warning, loud=True)
    text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
    if json_to == "-":
        print(text, end="")
    else:
        if json_to is not None:
            write_text(Path(json_to), text, force=force)
        said = [
            dataclasses.replace(one, detail=worded(one.detail), meaning=worded(one.meaning))
            for one in found.checks
        ]
        print_table(audit_table(dataclasses.replace(found, checks=tuple(said))))
    if found.passed:
        return 0
    note(f"audit failed: {', '.join(found.failed)}; the attack shows no robustness", loud=True)
    return UntrustedError.exit_code
