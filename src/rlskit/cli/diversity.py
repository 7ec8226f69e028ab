"""`rlskit diversity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.options import (
    DEFAULT_CHECKPOINT,
    BatchSizeOption,
    CheckpointArgument,
    DataDirOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelOption,
    QuietOption,
    SeedOption,
    SplitOption,
    WorkersOption,
)
from rlskit.cli.show import progress_bar, show


def diversity(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    n_samples: Annotated[int, typer.Option(help="Draws that are compared.")] = 10,
    repeats: Annotated[int, typer.Option(help="Sets of fresh draws.")] = 10,
    adversarial: Annotated[
        Path | None, typer.Option(help="Images that `attack --save-adversarial` wrote.")
    ] = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 128,
    num_workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    model: ModelOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure how much draws agree: interrater agreement kappa and its relatives."""
    import rlskit
    from rlskit.devices import choose_device
    from rlskit.results import diversity_table

    banked = rlskit.load(checkpoint, architecture=model).to(choose_device(device))
    images = None
    if adversarial is None:
        images = rlskit.load_data(
            data or banked.card.default_data(),
            split,
            data_dir=data_dir,
            download=download,
            limit=limit,
        )
    with progress_bar(quiet) as progress:
        result = rlskit.measure_diversity(
            banked, images, adversarial=adversarial, n_samples=n_samples, repeats=repeats,
            batch_size=batch_size, num_workers=num_workers, seed=seed, progress=progress,
        )  # fmt: skip
    show(diversity_table(result), [result], json_to=json_to, force=force)
