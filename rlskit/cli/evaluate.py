"""`rlskit eval`."""

from __future__ import annotations

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
    FailUnderOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelOption,
    OutOption,
    PerExampleOption,
    QuietOption,
    RepeatsOption,
    SeedOption,
    SkipBadOption,
    SplitOption,
    WorkersOption,
)
from rlskit.cli.show import (
    check_gate,
    check_json,
    check_out,
    check_source,
    gate,
    gated,
    note,
    progress_bar,
    run_folder,
    show,
)


def evaluate(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    n_samples: Annotated[
        str | None, typer.Option(help="N, or several: 1,5,10,15; the draws nest.")
    ] = None,
    adversarial: Annotated[
        Path | None, typer.Option(help="Images that `attack --save-adversarial` wrote.")
    ] = None,
    repeats: RepeatsOption = 1,
    per_example: PerExampleOption = False,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: LimitOption = None,
    skip_bad: SkipBadOption = False,
    batch_size: BatchSizeOption = 128,
    num_workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    model: ModelOption = None,
    expect_clean: ExpectCleanOption = None,
    fail_under: FailUnderOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Score the mean of N draws on clean or on saved adversarial images."""
    check_gate(fail_under)  # as all checks before torch is loaded, which takes seconds
    check_json(json_to, force)
    check_out(out, force)
    import rlskit
    from rlskit.evaluation import EvalOptions, counts_of
    from rlskit.report import accuracy_table
    from rlskit.runtime.devices import choose_device

    check_source(adversarial, data=data, split=split, limit=limit)
    options = EvalOptions(
        n_samples=counts_of(n_samples), repeats=repeats, batch_size=batch_size,
        num_workers=num_workers, seed=seed, per_example=per_example, expect_clean=expect_clean,
        gated=fail_under is not None,
    )  # fmt: skip
    banked = rlskit.load(checkpoint, architecture=model).to(choose_device(device))
    images = None
    if adversarial is None:
        images = rlskit.load_data(
            data or banked.card.default_data(),
            split,
            data_dir=data_dir,
            download=download,
            limit=limit,
            skip_bad=skip_bad,
        )
    with run_folder(out, "eval") as folder, progress_bar(quiet) as progress:
        results = rlskit.evaluate(
            banked, images, adversarial=adversarial, options=options, out=folder, force=force,
            progress=progress,
        )  # fmt: skip
    results = gated(results, fail_under, folder)
    show(accuracy_table(results), results, json_to=json_to, force=force)
    note(f"results: {folder / 'results.json'}", quiet=quiet)
    return gate(results, quiet=quiet)
