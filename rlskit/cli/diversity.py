"""`rlskit diversity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlskit.cli.flags import (
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
    SkipBadOption,
    SplitOption,
    WorkersOption,
)
from rlskit.cli.show import check_json, check_source, progress_bar, show
from rlskit.cli.wording import flag_of
from rlskit.errors import RequestError


def diversity(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    n_samples: Annotated[
        int | None, typer.Option(help="Draws that are compared: 10, with --transfer 5.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Sets of fresh draws: 10, with --transfer 1.")
    ] = None,
    adversarial: Annotated[
        Path | None, typer.Option(help="Images that `attack --save-adversarial` wrote.")
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer", help="Instead: does an attack on one draw turn another, draw by draw?"
        ),
    ] = False,
    eps: Annotated[str | None, typer.Option(help="With --transfer: PGD's budget, 0.03.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --transfer: PGD's steps, 10.")] = None,
    step_size: Annotated[str | None, typer.Option(help="With --transfer: eps / 5.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --transfer: draw it to FILE.png, .svg or .pdf.")
    ] = None,
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
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure how much draws agree: interrater agreement kappa and its relatives."""
    import rlskit
    from rlskit.report import check_plot, diversity_table, plot_transfer, transfer_table
    from rlskit.runtime.devices import choose_device

    threat = {"eps": eps, "steps": steps, "step_size": step_size}
    _check_options(transfer, adversarial, {**threat, "plot": plot})
    check_json(json_to, force)
    check_source(adversarial, data=data, split=split, limit=limit)
    if plot is not None:
        check_plot(plot, force=force)
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
    common: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
    common |= _given({"n_samples": n_samples, "repeats": repeats})
    with progress_bar(quiet) as progress:
        if transfer:
            result = rlskit.measure_transfer(
                banked, images, progress=progress, **common, **_given(threat)
            )
        else:
            result = rlskit.measure_diversity(
                banked, images, adversarial=adversarial, progress=progress, **common
            )
    if plot is not None:
        plot_transfer(result, plot, force=force)
    table = transfer_table(result) if transfer else diversity_table(result)
    show(table, [result], json_to=json_to, force=force)


def _check_options(transfer: bool, adversarial: Path | None, only: dict[str, Any]) -> None:
    """Require that what belongs to `--transfer` stands beside it, and nothing else does.

    Raises:
        RequestError: It does not.
    """
    if transfer and adversarial is not None:
        raise RequestError("--transfer makes its own adversarial images; leave --adversarial out")
    if not transfer and (given := _given(only)):
        flag = flag_of(next(iter(given)))
        raise RequestError(f"{flag} is an option of --transfer; add that, or leave {flag} out")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the library's defaults hold for the others."""
    return {name: value for name, value in options.items() if value is not None}
