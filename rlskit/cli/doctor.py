"""`rlskit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.opening import Constants, WeightsOption, opened
from rlskit.cli.option_sets import Images
from rlskit.cli.show import say
from rlskit.cli.wording import worded
from rlskit.errors import UntrustedError
from rlskit.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlskit.evaluation import Finding


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete.networks,
            help="A checkpoint, or a network's name with --weights and --data.",
        ),
    ] = None,
    *,
    weights: WeightsOption = None,
    constants: Constants,
    images: Images,
) -> int:
    """Say what is true of this machine, and of a model before it is attacked, in seconds."""
    from rlskit.evaluation import diagnose, machine

    troubles = _said(machine())
    if model is not None:
        banked = opened(model, weights, constants, images)
        troubles += _said(diagnose(banked, images.load(banked, "test")))
    return UntrustedError.exit_code if troubles else 0


def _said(findings: Iterable[Finding]) -> int:
    """Print findings, a line each; return how many would make numbers mean nothing."""
    troubles = 0
    for finding in findings:
        lead = "TROUBLE: " if finding.trouble else ""
        say(f"{finding.about:14}{lead}{printable(worded(finding.text))}")
        troubles += finding.trouble
    return troubles
