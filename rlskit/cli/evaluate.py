"""`rlskit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rlskit.cli.flags import ABSTAIN, DATA, SCORING, SplitOption, under
from rlskit.cli.forecast import forecast
from rlskit.cli.option_sets import Images, Network, RunOutput, Scoring
from rlskit.cli.show import check_run, check_source, run_folder, show_run
from rlskit.cli.ticker import progress_shown
from rlskit.cli.wording import flag_of
from rlskit.errors import RequestError


def evaluate(
    *,
    network: Network,
    n_samples: Annotated[
        str | None, under(SCORING, "N, or several: 1,5,10,15; the draws nest.")
    ] = None,
    abstain: Annotated[
        float | None,
        under(
            SCORING,
            "Leave unanswered where the draws disagree, at this share of clean images (0.05): "
            "clean, under transfer, and under an attacker who makes them agree.",
        ),
    ] = None,
    eps: Annotated[str | None, under(ABSTAIN, "The attackers' budget: 0.02 or 8/255.")] = None,
    norm: Annotated[str | None, under(ABSTAIN, "linf or l2; linf.")] = None,
    steps: Annotated[int | None, under(ABSTAIN, "Of PGD, 50.")] = None,
    n_attacked: Annotated[
        int | None, under(ABSTAIN, "Draws at every step of who makes them agree, 10.")
    ] = None,
    scoring: Scoring,
    adversarial: Annotated[
        Path | None, under(DATA, "Images that `attack --save-adversarial` wrote.")
    ] = None,
    images: Images,
    split: SplitOption = "test",
    output: RunOutput,
) -> int:
    """Score the mean of N draws on clean or on saved adversarial images."""
    given = {"eps": eps, "norm": norm, "steps": steps, "n_attacked": n_attacked}
    threat: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    _check_options(abstain, threat, adversarial, scoring)
    if scoring.shuffle and (abstain is not None or adversarial is not None):
        raise RequestError("--shuffle goes with neither --abstain nor --adversarial; leave one out")
    check_run(scoring, output)  # before torch is loaded, which takes seconds
    import rlskit
    from rlskit.evaluation import counts_of
    from rlskit.report import abstention_table

    check_source(adversarial, data=images.data, split=split, limit=images.limit)
    options = scoring.options(counts_of(n_samples))
    model = network.load()
    data = images.load(model, split, scoring.order) if adversarial is None else None
    asked = {"n_samples": n_samples, "repeats": scoring.repeats, "abstain": abstain}
    forecast("eval", model, data, asked, quiet=output.quiet)
    with (
        run_folder(output.out, "eval") as folder,
        progress_shown(output.progress, output.quiet) as progress,
    ):
        common: dict[str, Any] = {
            "options": options, "out": folder, "force": output.force, "progress": progress
        }  # fmt: skip
        if abstain is None:
            results = rlskit.evaluate(model, data, adversarial=adversarial, **common)
        else:
            results = [rlskit.measure_abstention(model, data, abstain=abstain, **threat, **common)]
    table = None if abstain is None else abstention_table(results[0])
    return show_run(results, folder, scoring, output, table=table)


def _check_options(
    abstain: float | None, threat: dict[str, Any], adversarial: Path | None, scoring: Scoring
) -> None:
    """Require that what belongs to `--abstain` stands beside it, and what does not stays away.

    Raises:
        RequestError: It does not.
    """
    if abstain is None:
        if threat:
            flag = flag_of(next(iter(threat)))
            raise RequestError(f"{flag} is an option of --abstain; add that, or leave {flag} out")
        return
    if "eps" not in threat:
        raise RequestError("--abstain needs the attackers' budget, such as --eps 8/255")
    if adversarial is not None:
        raise RequestError("--abstain makes its own adversarial images; leave --adversarial out")
    if scoring.fail_under is not None:
        raise RequestError("--fail-under knows of no abstaining; leave it or --abstain out")
