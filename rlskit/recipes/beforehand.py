"""What is sure to be refused of a baseline is refused before hours are spent on what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rlskit.data import Data
from rlskit.data import load as load_data
from rlskit.documents import to_json
from rlskit.errors import RequestError, RlskitError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.recipes.baseline import baseline_folder, cell_of
from rlskit.recipes.checking import adaptive_of, prepared, samples_of
from rlskit.recipes.recipe import Recipe
from rlskit.recipes.stages import Stage
from rlskit.results import Result, read_answers, read_run
from rlskit.threat.adaptive import PROTOCOL as ADAPTIVE
from rlskit.threat.view import protocol_of

Held = Mapping[str, Sequence[Result]]
"""`ROW/COLUMN` -> the baseline's results there."""


def required(recipe: Recipe) -> Held:
    """Return the baseline's results of all cells of which a drop is asked for.

    Raises:
        RequestError: The baseline cannot be read, lacks one, or has tables that do not fit it.
    """
    found = {}
    with baseline_folder(recipe.baseline) as before:
        for stage in recipe.stages:
            if before is not None and recipe.drops(stage):
                run = read_run(cell_of(before, *stage.name.split("/")))
                for part in run.parts:
                    read_answers(part)
                found[stage.name] = [part.result for part in run.parts]
    return found


def check_comparable(stages: Iterable[Stage], folder: Path, held: Held) -> None:
    """Require that the cells of a model will be of the baseline's images, protocol and attack.

    Args:
        stages: The cells, whose model is there.
        folder: Of the run.
        held: From `required`.

    Raises:
        RequestError: One will not.
    """
    images: dict[str, Data] = {}
    for stage in stages:
        before = held.get(stage.name, ())
        if not before or "adversarial" in stage.options:
            continue
        try:
            model = _model(stage, folder)
            key = str([stage.options.get(name) for name in _OF_IMAGES])
            data = images[key] = images.get(key) or _images(stage, model)
            how = _protocol(stage), _attacks(stage, model)
        except RlskitError:  # which the stage itself says better
            continue
        _require_images(stage.name, data, before[0])
        _require_alike(stage.name, *how, before)


_OF_IMAGES = (
    "classes", "data", "data-dir", "download", "limit", "seed", "shuffle", "skip-bad", "split",
)  # fmt: skip
"""The options that decide which images a stage takes."""


def _model(stage: Stage, folder: Path) -> BankedModel:
    own = stage.options.get("model")
    path = stage.checkpoint or folder / stage.converted.output
    return checkpoint.load(path, architecture=str(own) if own else None)


def _images(stage: Stage, model: BankedModel) -> Data:
    """Return the images that a stage will take, as its model sees them."""
    given = {name: value for name, value in stage.options.items() if value is not False}
    text = {name: str(given[name]) for name in given}
    data = load_data(
        text.get("data") or model.card.default_data(),
        text.get("split", "test"),
        data_dir=text.get("data-dir"),
        download="download" in given,
        limit=int(text["limit"]) if "limit" in text else None,
        skip_bad="skip-bad" in given,
        classes=text.get("classes"),
        order=int(text.get("seed", "0")) if "shuffle" in given else None,
    )
    return data.adapted(model.card.pixels, model.card.classes, model.card.names)


def _protocol(stage: Stage) -> str:
    if stage.command == "eval":
        return "clean"
    named = str(stage.options["protocol"]) if "protocol" in stage.options else None
    if named == ADAPTIVE:
        return ADAPTIVE
    return protocol_of(named, int(stage.options.get("n-attacked", 1)))


def _attacks(stage: Stage, model: BankedModel) -> list[object]:
    """Return method and parameters of each attack, as its result will have them."""
    if stage.command == "eval":
        return []
    if stage.options.get("protocol") != ADAPTIVE:
        return [to_json([one.method, one.params]) for one in prepared(stage)]
    found = adaptive_of(stage, model, max(samples_of(stage) or (1,)))
    return [] if found is None else [to_json([ADAPTIVE, found.facts()["attack"].params])]


def _require_images(name: str, data: Data, before: Result) -> None:
    """Require the very images of the baseline.

    Raises:
        RequestError: They are others.
    """
    for fact, mine in {"split": data.split, "n": len(data), "sha256": data.sha256}.items():
        theirs = getattr(before.data, fact)
        if mine != theirs:
            raise RequestError(
                f"{name} would be measured on different images than the baseline ({fact}: {mine} "
                f"here, {theirs} there); take the same `data`, `split` and `limit`, or make a "
                "baseline of these"
            )


def _require_alike(
    name: str, protocol: str, attacks: Sequence[object], before: Sequence[Result]
) -> None:
    """Require that a cell will be measured as the baseline was.

    Raises:
        RequestError: It will not.
    """
    if protocol != before[0].protocol:
        raise RequestError(
            f"{name} would be measured under {protocol}, and what it is held against was under "
            f"{before[0].protocol}: that difference is the protocols', no drop; run the same one"
        )
    theirs = [to_json([one.attack.method, one.attack.params]) for one in before if one.attack]
    if any(one not in theirs for one in attacks):
        said = "; ".join(map(str, attacks))
        raise RequestError(
            f"the baseline's {name} has no result of the same attacks ({said}); run the same "
            "columns for it"
        )
