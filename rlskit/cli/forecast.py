"""What is said before a command that will take over a minute: about how long."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlskit.cli.flags import flag
from rlskit.cli.show import note
from rlskit.cli.ticker import duration

if TYPE_CHECKING:
    from rlskit.data import Data
    from rlskit.models import BankedModel
    from rlskit.recipes import Cost, Stage


def forecast(
    command: str,
    model: BankedModel,
    data: Data | None,
    given: Mapping[str, Any],
    *,
    quiet: bool,
    surrogate: Sequence[BankedModel] = (),
) -> None:
    """Say on stderr about how long a command will take, where that is over a minute.

    It never ends the command: what is wrong with a request or a model, that says better.

    Args:
        command: As in a recipe.
        model: What it is about.
        data: Its images; None where they are saved adversarial ones, which are soon scored.
        given: Its options by their names in Python; None and False are left out.
        quiet: Say nothing, and measure nothing.
        surrogate: The models that an option of that name names.
    """
    if quiet or data is None:
        return
    from rlskit.recipes import Stage, foreseen, option_text

    options = {
        flag(name)[2:]: option_text(command, name, value)
        for name, value in given.items()
        if value is not None and value is not False
    }
    try:
        found = foreseen(Stage(command, command, options, None), model, len(data), surrogate)
    except Exception:
        return
    if found is not None:
        cost, hours = found.total([command])
        at_most = "at most" if cost.at_most else "about"
        note(
            f"{at_most} {duration(3600 * hours)}: {counted(cost)}, at the speed of one batch, "
            f"measured just now on {found.device}"
        )


def forecast_run(
    stages: Sequence[Stage], up_to_date: int, folder: Path, execute: Callable[[list[str]], int]
) -> None:
    """Say on stderr about how long the stages of a recipe will take, where that is over a minute.

    Args:
        stages: What is to run.
        up_to_date: How many stages are not.
        folder: Of the run.
        execute: Runs one command line; what it says is not shown.

    Raises:
        StageError: It was interrupted.
    """
    from rlskit.recipes import StageError, foreseen_run

    if not stages:
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a `convert` says it when it is run
            found = foreseen_run(stages, folder, execute)
    except StageError:
        raise
    except Exception:
        return
    if found is None:
        return
    cost, hours = found.total([*found.costs])
    unknown = [name for name, one in found.costs.items() if one is None]
    at_most = "at most" if cost.at_most and not unknown else "about"
    more = f", {', '.join(unknown)} not counted" if unknown else ""
    many = f"{len(stages)} stage{'s'[: len(stages) != 1]} to do, {up_to_date} up to date"
    note(
        f"{at_most} {duration(3600 * hours)}{more}: {many}, at the speed of one batch, measured "
        f"just now on {found.device}"
    )


def said(cost: Cost | None, hours: float | None) -> str:
    """Return what something computes, and how long it takes."""
    if cost is None or hours is None:
        return "cost unknown"
    about = "at most" if cost.at_most else "about"
    return f"{counted(cost)}, {about} {duration(3600 * hours)}"


def counted(cost: Cost) -> str:
    """Return what something computes."""
    at_most = "at most " if cost.at_most else ""
    passes = f"{cost.forwards:,} forward and {cost.backwards:,} backward passes"
    return f"{cost.images:,} images, {at_most}{passes}"
