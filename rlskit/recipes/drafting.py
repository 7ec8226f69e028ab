"""The first recipe of a model, and the CI jobs that run it (`rlskit init`).

What is written is filled into the files in `templates/`, where `@WORD@` stands for a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from rlskit import __version__
from rlskit.errors import RequestError
from rlskit.evaluation.clean import Knowledge
from rlskit.models.architecture import names_code
from rlskit.models.banks import Card
from rlskit.recipes.cost import Estimate
from rlskit.stats import lower_bound

ATTACKED = "release/linf"
"""The stage that takes by far the longest."""

LIMITS = (1000, 500, 200, 100)
"""How many images a first recipe may attack: the most that surely are done in `HOURS`."""

HOURS = 1.0

JOBS: Mapping[str, Path] = MappingProxyType(
    {"github": Path(".github/workflows/rlskit.yml"), "gitlab": Path("rlskit.gitlab-ci.yml")}
)
"""Template of a job -> where its file goes, from the repository's root."""

FOLDER = "rlskit-run"
"""Where a job's run writes."""

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Start:
    """What a first recipe is made of.

    Attributes:
        model: The file of a checkpoint, or a network's name.
        weights: Of that network; None where the model is a checkpoint, or brings its own.
        finished: Whether it is a checkpoint.
        data: The images, `folder:PATH` and its kin, with the other options that say which.
        card: Of the model.
        clean: What it knows of some of the images.
        eps: The budget; None for what is usual for such images.
        stated: Other options of `convert` that say how the weights are to be read.
    """

    model: str
    weights: str | None
    finished: bool
    data: Mapping[str, str | bool]
    card: Card
    clean: Knowledge
    eps: str | None = None
    stated: Mapping[str, str | bool | int] = field(default_factory=dict)

    @property
    def trust(self) -> bool:
        """Whether the recipe names code, and is to be run with `trust`."""
        return not self.finished and names_code(self.model)


def draft(start: Start, path: Path, limit: int) -> str:
    """Return the text of a first recipe.

    Args:
        start: What it is made of.
        path: Where it goes.
        limit: How many images are attacked.
    """
    clean = start.clean
    bound = lower_bound([clean.accuracy], clean.n)
    return _filled("rlskit.toml", {
        "RUN": _command(start, path),
        "TITLE": _toml(f"{Path(start.model).name}: what must hold"),
        "DATA": "\n".join(f"{name} = {_toml(value)}" for name, value in start.data.items()),
        "MODEL": "\n".join(_model(start)),
        "EPS": _toml(start.eps or usual_budget(start.card)),
        "LIMIT": str(limit),
        "CLEAN": f"{math.floor(100 * bound) / 100:.2f}",
        "MEASURED": f"{clean.right:g} of {clean.n} images were right when this was written",
    })  # fmt: skip


def affordable(estimate: Estimate) -> int:
    """Return how many images can surely be attacked in `HOURS`, one of `LIMITS`.

    Args:
        estimate: Of a draft, with any limit.
    """
    cost, hours = estimate.costs[ATTACKED], estimate.hours[ATTACKED]
    if cost is None or hours is None:
        return LIMITS[-1]
    per_image = hours / cost.images
    return next((limit for limit in LIMITS if limit * per_image <= HOURS), LIMITS[-1])


def job(kind: str, start: Start, path: Path) -> str:
    """Return the text of a CI job that runs a recipe.

    Args:
        kind: A key of `JOBS`.
        start: What the recipe is made of.
        path: Where the recipe is.

    Raises:
        RequestError: The path would need quotes in a shell or in YAML.
    """
    if path.is_absolute() or not _PLAIN.fullmatch(str(path)):
        raise RequestError(
            f"`out` {str(path)!r}: for a CI job it is a path in the repository, of letters, "
            "digits, ., -, _ and /"
        )
    run = f"{_command(start, path)} --out {FOLDER}"
    values = {"RECIPE": str(path), "RUN": run, "INSTALLED": f"rlskit=={__version__}"}
    return _filled(f"{kind}.yml", values)


def usual_budget(card: Card) -> str:
    """Return the budget in linf that is usual in papers for images of such a size.

    RobustBench (Croce et al. 2021) takes 8/255 for CIFAR-10 and 4/255 for ImageNet; gray digits
    are told apart at far more, of which 0.1 is the low end.
    """
    channels, height, _ = card.pixels.shape
    if channels == 1:
        return "0.1"
    return "8/255" if height <= 64 else "4/255"


def _model(start: Start) -> list[str]:
    """Return the tables that say which model it is."""
    pixels = start.card.pixels
    mean, std = (", ".join(f"{value:.4g}" for value in one) for one in (pixels.mean, pixels.std))
    if start.finished:
        own = start.card.architecture.source == "own"
        code = (
            f'# model = "PATH/{start.card.architecture.name}"   # in [all], with --trust: its code'
        )
        lines = [
            f"checkpoint = {_toml(start.model)}   # made by `rlskit convert` or `rlskit train`"
        ]
        lines += [f"{code}, where rlskit has not seen it before, as in CI"] if own else []
        return ["[rows.release]", *lines, f"# its constants: mean {mean}; std {std}"]
    given = {"weights": start.weights, **start.stated}
    taken = {"mean": mean, "std": std}
    assumed = [f"# {name} = [{value}]" for name, value in taken.items() if name not in given]
    if assumed:
        assumed[0] += "   # as taken; if it was trained with others, state them"
    return [
        "[convert]                 # how the weights become a model: options of `rlskit convert`",
        f"name = {_toml(start.model)}",
        *(f"{name} = {_toml(value)}" for name, value in given.items() if value is not None),
        'defense = "none"',
        *assumed,
        "",
        "[rows.release]",
    ]


def _command(start: Start, path: Path) -> str:
    return f"rlskit run {path}{' --trust' if start.trust else ''}"


def _toml(value: str | bool | int) -> str:
    """Return a value as TOML; JSON's strings are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = files("rlskit.recipes").joinpath("templates", template).read_text(encoding="utf-8")
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], text)
