"""`rlskit init`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.flags import OUTPUT, ForceOption, under
from rlskit.cli.forecast import said
from rlskit.cli.opening import Constants, WeightsOption, is_checkpoint, opened
from rlskit.cli.option_sets import Images
from rlskit.cli.recipe import check, taken
from rlskit.cli.show import note, say
from rlskit.errors import RequestError

if TYPE_CHECKING:
    from rlskit.models import BankedModel
    from rlskit.recipes import Estimate, Start


def init(
    model: Annotated[
        str,
        typer.Argument(
            autocompletion=complete.networks,
            help="A checkpoint, or a network's name with --weights and --data.",
        ),
    ],
    *,
    weights: WeightsOption = None,
    constants: Constants,
    eps: Annotated[
        str | None, typer.Option(help="Budget in linf; by default what is usual for such images.")
    ] = None,
    images: Images,
    github: Annotated[
        bool, under(OUTPUT, "Also write a GitHub workflow that runs it.", "--github")
    ] = False,
    gitlab: Annotated[
        bool, under(OUTPUT, "Also write a GitLab job that runs it.", "--gitlab")
    ] = False,
    out: Annotated[Path, under(OUTPUT, "The recipe to write.", "--out", "-o")] = Path(
        "rlskit.toml"
    ),
    force: ForceOption = False,
) -> None:
    """Write a commented rlskit.toml that says what must hold of a model; say what it costs."""
    from rlskit import recipes
    from rlskit.storage.files import refuse_existing, write_text
    from rlskit.storage.locks import make_folder

    kinds = [kind for kind, asked in (("github", github), ("gitlab", gitlab)) if asked]
    refuse_existing(out, force)
    for file in (recipes.JOBS[kind] for kind in kinds):
        if file.parent.is_dir():
            refuse_existing(file, force)
    banked = opened(model, weights, constants, images)
    start = _start(model, banked, weights, constants, eps, images)
    jobs = {recipes.JOBS[kind]: recipes.job(kind, start, out) for kind in kinds}
    first = recipes.draft(start, out, recipes.LIMITS[-1])
    limit = images.limit or recipes.affordable(_estimated(first, banked))
    text = recipes.draft(start, out, limit)
    estimate = _estimated(text, banked)
    for file, content in {out: text, **jobs}.items():
        make_folder(file.parent)
        write_text(file, content, force=force)
        say(f"wrote {file}")
    total, hours = estimate.total(list(estimate.costs))
    say(f"it takes {said(total, hours)} on {estimate.device}")
    for sentence in (*start.card.assumed, *start.card.notes):
        note(sentence, loud=True)
    trust = " --trust" if start.trust else ""
    note(f"next: rlskit run {out}{trust}; then give [gates] a line for linf, which has none yet")


def _start(
    model: str,
    banked: BankedModel,
    weights: str | None,
    constants: Constants,
    eps: str | None,
    images: Images,
) -> Start:
    """Return what the recipe is made of.

    Raises:
        RequestError: The model or its images are not there, or it is untrained.
        UntrustedError: It only guesses.
    """
    from rlskit import recipes
    from rlskit.evaluation import EvalOptions, known_of, subject_of

    if not banked.card.trained:
        raise RequestError(f"{model} is untrained, and nothing can hold of it; name its --weights")
    given: dict[str, str | bool] = {
        "data": images.data or banked.card.default_data(),
        "data-dir": "" if images.data_dir is None else str(images.data_dir),
        "download": images.download,
        "skip-bad": images.skip_bad,
        "classes": images.classes or "",
    }
    data = dataclasses.replace(images, limit=None).load(banked, "test")
    return recipes.Start(
        model=model,
        weights=weights,
        stated=constants.stated,
        finished=is_checkpoint(model, weights),
        data={name: value for name, value in given.items() if value},
        card=banked.card,
        clean=known_of(subject_of(banked, data), EvalOptions(gated=True)),
        eps=eps,
    )


def _estimated(text: str, model: BankedModel) -> Estimate:
    """Return what a recipe will cost, after all that `rlskit run` checks before it runs.

    Raises:
        RequestError: It would not run.
    """
    from rlskit import recipes

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "rlskit.toml"
        file.write_text(text, encoding="utf-8")
        recipe = recipes.load(file, takes=taken())
        recipes.check_stages(recipe, Path(name), check)
        return recipes.estimate_of(recipe.stages, model)
