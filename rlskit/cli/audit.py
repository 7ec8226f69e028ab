"""`rlskit audit`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from rlskit.attacks.options import EFFORT
from rlskit.cli import complete
from rlskit.cli.flags import (
    MACHINE,
    SCORING,
    VIEW,
    WHAT,
    BatchSizeOption,
    ExpectCleanOption,
    ForceOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    SeedOption,
    SplitOption,
    under,
)
from rlskit.cli.forecast import forecast
from rlskit.cli.option_sets import Images, Network, Rows
from rlskit.cli.show import check_json, note, print_table, stdout
from rlskit.cli.ticker import progress_shown
from rlskit.cli.wording import worded
from rlskit.errors import RequestError, UntrustedError

A_FEW = Images(limit=100)


def audit(
    *,
    network: Network,
    surrogate: Annotated[Path | None, under(WHAT, "A second checkpoint, to transfer from.")] = None,
    method: Annotated[
        str,
        under(
            WHAT,
            "The attack under audit, in linf and along gradients, as pgd or apgd-ce.",
            autocompletion=complete.methods,
        ),
    ] = "pgd",
    pixel_range: Annotated[
        str, under(EFFORT, "Scale of all such numbers: 0:1, or the paper's -1:1.")
    ] = "0:1",
    n_attacked: Annotated[int, under(VIEW, "Draws in the attacker's view.")] = 1,
    protocol: Annotated[
        str | None,
        under(
            VIEW,
            "transfer (n = 1), multi, or eot (fresh draws at every step).",
            autocompletion=complete.protocols,
        ),
    ] = None,
    n_samples: Annotated[int | None, under(SCORING, "N: the defender's draws.")] = None,
    queries: Annotated[int, under(SCORING, "Of the square attack, per image.")] = 500,
    points: Annotated[int, under(SCORING, "Of the random search, per image.")] = 100,
    expect_clean: ExpectCleanOption = None,
    images: Images = A_FEW,
    split: SplitOption = "test",
    batch_size: BatchSizeOption = 128,
    seed: SeedOption = 0,
    shard: Annotated[
        str | None,
        under(
            MACHINE,
            "Do this part of the checks, as 0/3, 1/3, 2/3 beside each other, for one --json FILE; "
            "the same without it makes the audit. auto: what torchrun or a Slurm array says.",
            "--shard",
        ),
    ] = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    progress: ProgressOption = None,
    quiet: QuietOption = False,
    **params: Annotated[Any, Rows(("eps", "steps", "step_size", "restarts", "loss"))],
) -> int:
    """Check whether the accuracy under an attack may be read as robustness; exit 4 if not."""
    import rlskit
    from rlskit.audit.finished_checks import of_shards
    from rlskit.report import audit_table
    from rlskit.storage.files import write_text

    check_json(json_to, force)
    kept = None if json_to in (None, "-") else Path(f"{json_to}.unfinished")
    if shard is not None and kept is None:
        raise RequestError("--shard needs --json FILE, beside which its checks are kept")
    model = network.load()
    data = images.load(model, split)
    given = {**params, "method": method, "protocol": protocol, "pixel_range": pixel_range}
    given |= {"n_attacked": n_attacked, "n_samples": n_samples, "batch_size": batch_size}
    given |= {"queries": queries, "points": points}
    forecast("audit", model, data, given, quiet=quiet)
    with progress_shown(progress, quiet) as told:
        found = rlskit.audit_model(
            model, data, method=method, pixel_range=pixel_range, n_attacked=n_attacked,
            protocol=protocol, n_samples=n_samples, limit=None, queries=queries, points=points,
            surrogate=None if surrogate is None else network.beside(surrogate),
            batch_size=batch_size, seed=seed, expect_clean=expect_clean, keep=kept,
            shard=shard, progress=told,
            **params,
        )  # fmt: skip
    for warning in found.warnings:
        note(warning, loud=True)
    text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
    if json_to == "-":
        print(text, end="", file=stdout())
    else:
        if json_to is not None:
            write_text(Path(json_to), text, force=force)
        if kept is not None:
            for file in (kept, *of_shards(kept)):
                file.unlink(missing_ok=True)  # where shards did all
        said = [
            dataclasses.replace(one, detail=worded(one.detail), meaning=worded(one.meaning))
            for one in found.checks
        ]
        print_table(audit_table(dataclasses.replace(found, checks=tuple(said))))
    if found.passed:
        return 0
    note(f"audit failed: {', '.join(found.failed)}; the attack shows no robustness", loud=True)
    return UntrustedError.exit_code
