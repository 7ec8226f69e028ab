"""`rlskit attack`."""

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
    gate,
    gated,
    note,
    progress_bar,
    run_folder,
    show,
)
from rlskit.errors import RequestError


def attack(
    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT,
    method: Annotated[
        list[str] | None,
        typer.Option(help="pgd by default; several with commas. `rlskit attacks` lists them."),
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budget: 0.02 or 8/255; several with commas.")
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="linf, l2 or l1, where there is a choice.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Iterations; of square, queries.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Of pgd and its kin; eps / 10.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is ascended: ce (does not saturate), margin, dlr; or ce-saturating, the "
            "textbook's, bit-equal to torchattacks."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Attack towards: random, least-likely, or a class.")
    ] = None,
    random_start: Annotated[
        bool | None, typer.Option("--random-start/--no-random-start", help="Of pgd.")
    ] = None,
    restarts: Annotated[int | None, typer.Option(help="Runs per image; the worst counts.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Decay of past gradients in pgd.")] = None,
    eot_samples: Annotated[
        int | None, typer.Option(help="Calls of the view whose gradients make one step.")
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
    overshoot: Annotated[float | None, typer.Option(help="Of deepfool.")] = None,
    top_classes: Annotated[int | None, typer.Option(help="Of deepfool and arc.")] = None,
    target_classes: Annotated[
        int | None, typer.Option(help="Of apgd-t and fab: nearest classes aimed at, one by one.")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="Of apgd.")] = None,
    version: Annotated[str | None, typer.Option(help="Of autoattack: standard or rand.")] = None,
    queries: Annotated[
        int | None, typer.Option(help="Of autoattack's square; of adaptive's.")
    ] = None,
    p_init: Annotated[float | None, typer.Option(help="Of square: first share of pixels.")] = None,
    distribution: Annotated[str | None, typer.Option(help="Of noise: uniform or gaussian.")] = None,
    theta: Annotated[str | None, typer.Option(help="Of jsma: change of a value.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Of jsma: share that may change.")] = None,
    pixels: Annotated[int | None, typer.Option(help="Of onepixel.")] = None,
    population: Annotated[int | None, typer.Option(help="Of onepixel.")] = None,
    smallest_patch: Annotated[int | None, typer.Option(help="Of pixle.")] = None,
    largest_patch: Annotated[int | None, typer.Option(help="Of pixle.")] = None,
    pixel_range: Annotated[
        str, typer.Option(help="Scale of the numbers above: 0:1, or the paper's -1:1.")
    ] = "0:1",
    n_attacked: Annotated[
        int | None, typer.Option(help="Draws in the attacker's view: 1; 10 under adaptive.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="transfer (n = 1), multi, eot (fresh draws at every step), or adaptive: the worst "
            "of several attacks, the honest number."
        ),
    ] = None,
    twin: Annotated[
        Path | None, typer.Option(help="Of adaptive: an undefended checkpoint that it also tries.")
    ] = None,
    view: Annotated[
        str, typer.Option(help="How several draws are seen: mean-prob or mean-logit.")
    ] = "mean-prob",
    risk: Annotated[
        str, typer.Option(help="Under eot: mean (of predictions), or gibbs (of single losses).")
    ] = "mean",
    engine: Annotated[str, typer.Option(help="rlskit or torchattacks.")] = "rlskit",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile what is attacked, once; for long attacks.")
    ] = False,
    n_samples: Annotated[int | None, typer.Option(help="N: the defender's draws.")] = None,
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
    save_adversarial: Annotated[
        bool, typer.Option("--save-adversarial", help="Write the adversarial images, too.")
    ] = False,
    expect_clean: ExpectCleanOption = None,
    fail_under: FailUnderOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Attack a model through one, n or fresh draws; score on N other draws."""
    check_gate(fail_under)  # as all checks before torch is loaded, which takes seconds
    check_json(json_to, force)
    check_out(out, force)
    import rlskit
    from rlskit.attacks.requests import prepare_all
    from rlskit.evaluation import EvalOptions
    from rlskit.report import accuracy_table, broken_by
    from rlskit.runtime.devices import choose_device
    from rlskit.threat.adaptive import adaptive_options

    params = {
        "eps": eps, "norm": norm, "steps": steps, "step_size": step_size, "loss": loss, "target":
        target, "random_start": random_start, "restarts": restarts, "momentum": momentum,
        "eot_samples": eot_samples, "c": c, "kappa": kappa, "beta": beta, "lr": lr, "search_steps":
        search_steps, "decision_rule": decision_rule, "optimizer": optimizer, "overshoot":
        overshoot, "top_classes": top_classes, "target_classes": target_classes, "rho": rho,
        "version": version, "queries": queries, "p_init": p_init, "distribution": distribution,
        "theta": theta, "gamma": gamma, "pixels": pixels, "population": population,
        "smallest_patch": smallest_patch, "largest_patch": largest_patch,
    }  # fmt: skip
    if protocol == "adaptive":
        given = {**params, "method": method, "n_attacked": n_attacked, "twin": twin}
        own = adaptive_options({"compile": compiled or None, **given})
        if (engine, view, risk) != ("rlskit", "mean-prob", "mean"):
            raise RequestError(
                "--protocol adaptive chooses engine, view and risk itself; leave them out"
            )
    else:
        wanted = prepare_all(
            ",".join(method or ["pgd"]), pixel_range=pixel_range, engine=engine, **params
        )
        if twin is not None:
            raise RequestError("--twin is an option of --protocol adaptive; leave it out")
    options = EvalOptions(
        n_samples=n_samples, repeats=repeats, batch_size=batch_size, num_workers=num_workers,
        seed=seed, per_example=per_example, expect_clean=expect_clean,
        gated=fail_under is not None,
    )  # fmt: skip
    banked = rlskit.load(checkpoint, architecture=model).to(choose_device(device))
    images = rlskit.load_data(
        data or banked.card.default_data(),
        split,
        data_dir=data_dir,
        download=download,
        limit=limit,
        skip_bad=skip_bad,
    )
    with run_folder(out, "attack") as folder, progress_bar(quiet) as progress:
        common: dict[str, Any] = {
            "options": options, "out": folder, "force": force, "save_adversarial":
            save_adversarial, "progress": progress,
        }  # fmt: skip
        if protocol == "adaptive":
            if twin is not None:
                own["twin"] = rlskit.load(twin).to(banked.device)
            results = [
                rlskit.attack_adaptively(banked, images, pixel_range=pixel_range, **own, **common)
            ]
        else:
            results = rlskit.attack_all(
                banked, images, attacks=wanted, n_attacked=1 if n_attacked is None else n_attacked,
                protocol=protocol, view=view, risk=risk, compiled=compiled, **common,
            )  # fmt: skip
    results = gated(results, fail_under, folder)
    show(accuracy_table(results), results, json_to=json_to, force=force)
    if protocol == "adaptive":
        note(broken_by(results[0]), quiet=quiet)
    note(f"results: {folder / 'results.json'}", quiet=quiet)
    return gate(results, quiet=quiet)
