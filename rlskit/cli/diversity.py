"""`rlskit diversity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rlskit.cli.flags import (
    DATA,
    OUTPUT,
    TRANSFER,
    WHAT,
    BatchSizeOption,
    ForceOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    SeedOption,
    ShardOption,
    SplitOption,
    WorkersOption,
    under,
)
from rlskit.cli.forecast import forecast
from rlskit.cli.option_sets import Images, Network
from rlskit.cli.show import (
    check_json,
    check_out,
    check_shard,
    check_source,
    show,
)
from rlskit.cli.ticker import progress_shown
from rlskit.cli.wording import flag_of
from rlskit.errors import RequestError


def diversity(
    *,
    network: Network,
    n_samples: Annotated[
        int | None, under(WHAT, "Draws that are compared: 10, with --transfer 5.")
    ] = None,
    repeats: Annotated[
        int | None, under(WHAT, "Sets of fresh draws: 10, with --transfer 1.")
    ] = None,
    transfer: Annotated[
        bool,
        under(
            WHAT, "Instead: does an attack on one draw turn another, draw by draw?", "--transfer"
        ),
    ] = False,
    eps: Annotated[str | None, under(TRANSFER, "PGD's budget, 0.03.")] = None,
    steps: Annotated[int | None, under(TRANSFER, "PGD's steps, 10.")] = None,
    step_size: Annotated[str | None, under(TRANSFER, "eps / 5.")] = None,
    plot: Annotated[Path | None, under(TRANSFER, "Draw it to FILE.png, .svg or .pdf.")] = None,
    adversarial: Annotated[
        Path | None, under(DATA, "Images that `attack --save-adversarial` wrote.")
    ] = None,
    images: Images,
    split: SplitOption = "test",
    batch_size: BatchSizeOption = 128,
    num_workers: WorkersOption = 0,
    seed: SeedOption = 0,
    shard: ShardOption = None,
    out: Annotated[
        Path | None,
        under(OUTPUT, "Folder to go on in after an interruption; none by default.", "--out", "-o"),
    ] = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    progress: ProgressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure how much draws agree: interrater agreement kappa and its relatives."""
    import rlskit
    from rlskit.report import check_plot, diversity_table, plot_transfer, transfer_table

    threat = {"eps": eps, "steps": steps, "step_size": step_size}
    _check_options(transfer, adversarial, {**threat, "plot": plot})
    check_shard(shard, out, {"--json": json_to, "--plot": plot})
    check_json(json_to, force)
    check_out(out, force)
    check_source(adversarial, data=images.data, split=split, limit=images.limit)
    if plot is not None:
        check_plot(plot, force=force)
    model = network.load()
    data = images.load(model, split) if adversarial is None else None
    asked = {"n_samples": n_samples, "repeats": repeats, "transfer": transfer}
    forecast("diversity", model, data, asked, quiet=quiet)
    common: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
    common |= {"shard": shard, "out": out, "force": force}
    common |= _given({"n_samples": n_samples, "repeats": repeats})
    with progress_shown(progress, quiet) as told:
        if transfer:
            result = rlskit.measure_transfer(model, data, progress=told, **common, **_given(threat))
        else:
            result = rlskit.measure_diversity(
                model, data, adversarial=adversarial, progress=told, **common
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
