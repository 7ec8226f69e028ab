"""`rlskit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rlskit.cli.flags import DATA, SCORING, SplitOption, under
from rlskit.cli.option_sets import Images, Network, RunOutput, Scoring
from rlskit.cli.show import check_run, check_source, progress_bar, run_folder, show_run


def evaluate(
    *,
    network: Network,
    n_samples: Annotated[
        str | None, under(SCORING, "N, or several: 1,5,10,15; the draws nest.")
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
    check_run(scoring, output)  # before torch is loaded, which takes seconds
    import rlskit
    from rlskit.evaluation import counts_of

    check_source(adversarial, data=images.data, split=split, limit=images.limit)
    options = scoring.options(counts_of(n_samples))
    model = network.load()
    data = images.load(model, split) if adversarial is None else None
    with run_folder(output.out, "eval") as folder, progress_bar(output.quiet) as progress:
        results = rlskit.evaluate(
            model, data, adversarial=adversarial, options=options, out=folder,
            force=output.force, progress=progress,
        )  # fmt: skip
    return show_run(results, folder, scoring, output)
