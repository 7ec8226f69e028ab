"""`rlskit attack`."""

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
    FailUnderOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelOption,
    OutOption,
    QuietOption,
    RepeatsOption,
    SeedOption,
    SplitOption,
    WorkersOption,
)
from rlskit.cli.show import check_gate, gate, note, progress_bar, resumable, show


def attack(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    method: Annotated[
        list[str] | None, typer.Option(help="fgsm, pgd, deepfool, cw, ead; several with commas.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budget of fgsm and pgd: 0.02 or 8/255; several with commas.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Iterations.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Of pgd; eps / 10.")] = None,
    random_start: Annotated[
        bool | None, typer.Option("--random-start/--no-random-start", help="Of pgd.")
    ] = None,
    c: Annotated[float | None, typer.Option("--c", help="Constant of cw and ead.")] = None,
    kappa: Annotated[float | None, typer.Option(help="Confidence of cw and ead.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of l1 in ead.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of cw and ead.")] = None,
    search_steps: Annotated[
        int | None, typer.Option(help="Binary search for c in cw and ead; 1 keeps it fixed.")
    ] = None,
    decision_rule: Annotated[str | None, typer.Option(help="Of ead: en or l1.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of ead: adam or fista.")] = None,
    norm: Annotated[str | None, typer.Option(help="Of deepfool: l2 or linf.")] = None,
    overshoot: Annotated[float | None, typer.Option(help="Of deepfool.")] = None,
    top_classes: Annotated[int | None, typer.Option(help="Of deepfool.")] = None,
    pixel_range: Annotated[
        str, typer.Option(help="Scale of the numbers above: 0:1, or the paper's -1:1.")
    ] = "0:1",
    n_attacked: Annotated[int, typer.Option(help="Draws in the attacker's view.")] = 1,
    protocol: Annotated[
        str | None,
        typer.Option(help="transfer (n = 1), multi, or eot (fresh draws at every step)."),
    ] = None,
    view: Annotated[
        str, typer.Option(help="How several draws are seen: mean-prob or mean-logit.")
    ] = "mean-prob",
    engine: Annotated[str, typer.Option(help="rlskit or torchattacks.")] = "rlskit",
    n_samples: Annotated[int | None, typer.Option(help="N: the defender's draws.")] = None,
    repeats: RepeatsOption = 1,
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
    save_adversarial: Annotated[
        bool, typer.Option("--save-adversarial", help="Write the adversarial images, too.")
    ] = False,
    fail_under: FailUnderOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Attack a model through one, n or fresh draws; score on N other draws."""
    import rlskit
    from rlskit.attacks.requests import prepare_all
    from rlskit.devices import choose_device
    from rlskit.evaluation import EvalOptions
    from rlskit.results import accuracy_table, free_folder

    check_gate(fail_under)
    params = {
        "eps": eps, "steps": steps, "step_size": step_size, "random_start": random_start, "c": c,
        "kappa": kappa, "beta": beta, "lr": lr, "search_steps": search_steps,
        "decision_rule": decision_rule, "optimizer": optimizer, "norm": norm,
        "overshoot": overshoot, "top_classes": top_classes,
    }  # fmt: skip
    wanted = prepare_all(
        ",".join(method or ["pgd"]), pixel_range=pixel_range, engine=engine, **params
    )
    options = EvalOptions(n_samples, repeats, batch_size, num_workers, seed)
    banked = rlskit.load(checkpoint, architecture=model).to(choose_device(device))
    images = rlskit.load_data(
        data or banked.card.default_data(), split, data_dir=data_dir, download=download, limit=limit
    )
    folder = out or free_folder(Path("runs"), "attack")
    with resumable(folder), progress_bar(quiet) as progress:
        results = rlskit.attack_all(
            banked, images, attacks=wanted, n_attacked=n_attacked, protocol=protocol, view=view,
            options=options, out=folder, force=force, save_adversarial=save_adversarial,
            progress=progress,
        )  # fmt: skip
    show(accuracy_table(results), results, json_to=json_to, force=force)
    note(f"results: {folder / 'results.json'}", quiet=quiet)
    return gate(results, fail_under)
