"""`rlskit attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rlskit.attacks.options import EFFORT
from rlskit.cli import complete
from rlskit.cli.flags import MACHINE, OUTPUT, SCORING, VIEW, WHAT, SplitOption, under
from rlskit.cli.forecast import forecast
from rlskit.cli.option_sets import AttackOptions, Images, Network, RunOutput, Scoring
from rlskit.cli.show import check_run, run_folder, show_run
from rlskit.cli.ticker import progress_shown
from rlskit.errors import RequestError


def attack(
    *,
    method: Annotated[
        list[str] | None,
        under(
            WHAT,
            "pgd by default; several with commas, as in --eps. `rlskit attacks` lists them.",
            autocompletion=complete.methods,
        ),
    ] = None,
    engine: Annotated[
        str, under(WHAT, "rlskit, torchattacks or adv-lib.", autocompletion=complete.engines)
    ] = "rlskit",
    network: Network,
    pixel_range: Annotated[
        str, under(EFFORT, "Scale of all such numbers: 0:1, or the paper's -1:1.")
    ] = "0:1",
    n_attacked: Annotated[
        int | None, under(VIEW, "Draws in the attacker's view: 1; 10 under adaptive.")
    ] = None,
    protocol: Annotated[
        str | None,
        under(
            VIEW,
            "transfer (n = 1), multi, eot (fresh draws at every step), known (the draws that "
            "answer), or adaptive: the worst of several attacks, the honest number.",
            autocompletion=complete.protocols,
        ),
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        under(VIEW, "Of adaptive: another checkpoint that it also transfers from; repeatable."),
    ] = None,
    view: Annotated[
        str, under(VIEW, "How several draws are seen: mean-prob or mean-logit.")
    ] = "mean-prob",
    risk: Annotated[
        str, under(VIEW, "Under eot: mean (of predictions), or gibbs (of single losses).")
    ] = "mean",
    compiled: Annotated[
        bool, under(MACHINE, "Compile what is attacked, once; for long attacks.", "--compile")
    ] = False,
    precision: Annotated[
        str,
        under(
            MACHINE,
            "Of the attack's gradients: fp32; bf16, faster on devices made for it; auto, which "
            "tries on some images whether bf16 finds as much.",
        ),
    ] = "fp32",
    n_samples: Annotated[int | None, under(SCORING, "N: the defender's draws.")] = None,
    scoring: Scoring,
    images: Images,
    split: SplitOption = "test",
    save_adversarial: Annotated[
        bool, under(OUTPUT, "Write the adversarial images, too.", "--save-adversarial")
    ] = False,
    output: RunOutput,
    **params: AttackOptions,
) -> int:
    """Attack a model through one, n or fresh draws; score on N other draws."""
    check_run(scoring, output)  # before torch is loaded, which takes seconds
    import rlskit
    from rlskit.attacks.requests import prepare_all
    from rlskit.report import broken_by
    from rlskit.threat.adaptive import PROTOCOL, adaptive_options

    if protocol == PROTOCOL:
        given = {**params, "method": method, "n_attacked": n_attacked, "surrogate": surrogate}
        own = adaptive_options({"compile": compiled or None, **given})
        if (engine, view, risk, precision) != ("rlskit", "mean-prob", "mean", "fp32"):
            raise RequestError(
                "--protocol adaptive chooses engine, view, risk and precision itself; leave them "
                "out"
            )
    else:
        wanted = prepare_all(
            ",".join(method or ["pgd"]), pixel_range=pixel_range, engine=engine, **params
        )
        if surrogate:
            raise RequestError("--surrogate is an option of --protocol adaptive; leave it out")
    options = scoring.options(n_samples)
    model = network.load()
    data = images.load(model, split, scoring.order)
    others = [network.beside(one) for one in surrogate or ()]
    given = {**params, "method": ",".join(method or ()) or None, "engine": engine}
    given |= {"n_attacked": n_attacked, "protocol": protocol, "pixel_range": pixel_range}
    given |= {"n_samples": n_samples, "repeats": scoring.repeats, "surrogate": bool(surrogate)}
    forecast("attack", model, data, given, quiet=output.quiet, surrogate=others)
    with (
        run_folder(output.out, "attack") as folder,
        progress_shown(output.progress, output.quiet) as progress,
    ):
        common: dict[str, Any] = {
            "options": options, "out": folder, "force": output.force, "save_adversarial":
            save_adversarial, "progress": progress,
        }  # fmt: skip
        if protocol == PROTOCOL:
            if others:
                own["surrogate"] = others
            results = [
                rlskit.attack_adaptively(model, data, pixel_range=pixel_range, **own, **common)
            ]
        else:
            results = rlskit.attack_all(
                model, data, attacks=wanted, n_attacked=1 if n_attacked is None else n_attacked,
                protocol=protocol, view=view, risk=risk, compiled=compiled,
                precision=precision, **common,
            )  # fmt: skip
    more = broken_by(results[0]) if protocol == PROTOCOL else ""
    return show_run(results, folder, scoring, output, more=more)
