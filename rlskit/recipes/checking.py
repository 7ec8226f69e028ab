"""What a stage's options make of themselves, checked before any stage runs.

The command's own parser has seen them already; what only the model can tell shows when it is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlskit.arguments import argument
from rlskit.attacks import PreparedAttack
from rlskit.attacks.options import OPTIONS
from rlskit.attacks.requests import prepare_all
from rlskit.audit import audited_attack
from rlskit.errors import RequestError
from rlskit.evaluation import EvalOptions, counts_of
from rlskit.models.banks import BankedModel
from rlskit.recipes.audited import OWN
from rlskit.recipes.stages import AUDIT, Stage, not_left_out
from rlskit.threat.adaptive import PROTOCOL as ADAPTIVE
from rlskit.threat.adaptive import Adaptive, adaptive_options, prepare_adaptive
from rlskit.threat.precision import check_known
from rlskit.threat.single import check_risk
from rlskit.threat.view import check_view, protocol_of
from rlskit.training import TrainOptions

_OF_TRANSFER = ("transfer", "eps", "steps", "step-size", "plot")


def check_options(stage: Stage) -> None:
    """Require options that the stage's command will take, as far as can be told without a model.

    Raises:
        RequestError: One is wrong.
    """
    given = _given(stage)
    if stage.command == "train":
        train_options(stage)
    elif stage.command in ("attack", "eval"):
        expected = given.get("expect_clean")
        EvalOptions(
            n_samples=samples_of(stage),
            repeats=int(given.get("repeats", 1)),
            batch_size=int(given.get("batch_size", 128)),
            expect_clean=None if expected is None else float(expected),
        )
    elif stage.command == "diversity":
        for name in _OF_TRANSFER:
            if stage.options.get(name, False) is not False:
                raise RequestError(
                    f"{argument(name)} is of `transfer`, which fills no cell of a table"
                )
    if stage.command == AUDIT:
        audited(stage)
    if stage.command == "attack":
        prepared(stage)
        if given.get("protocol") != ADAPTIVE:
            protocol_of(given.get("protocol"), int(given.get("n_attacked", 1)))
            check_view(given.get("view", "mean-prob"))
            check_risk(given.get("risk", "mean"))
            check_known(given.get("precision", "fp32"))


def prepared(stage: Stage) -> list[PreparedAttack]:
    """Return the attacks of an `attack` stage, their options checked and completed.

    The adaptive protocol chooses its attacks itself, when it has the model.

    Raises:
        RequestError: A method or an option is wrong.
    """
    given = _given(stage)
    if given.get("protocol") == ADAPTIVE:
        _adaptive_options(given)
        return []
    return prepare_all(
        str(given.get("method", "pgd")),
        pixel_range=str(given.get("pixel_range", "0:1")),
        engine=str(given.get("engine", "rlskit")),
        **{name: value for name, value in given.items() if name in OPTIONS},
    )


def audited(stage: Stage) -> PreparedAttack:
    """Return the attack that an `audit` stage is of.

    Raises:
        RequestError: It cannot be audited, or there are several.
    """
    attack = {name: value for name, value in stage.options.items() if name not in OWN}
    stage = dataclasses.replace(stage, options=attack)
    given, several = _given(stage), len(prepared(stage))
    if several != 1:
        raise RequestError(f"an audit is of one attack, and this column has {several}")
    scale = str(given.get("pixel_range", "0:1"))
    params = {name: value for name, value in given.items() if name in OPTIONS}
    return audited_attack(str(given.get("method", "pgd")), scale, params)


def adaptive_of(
    stage: Stage,
    model: BankedModel,
    samples: int,
    surrogate: Sequence[BankedModel] | None = None,
) -> Adaptive | None:
    """Return the attacks of a stage of the adaptive protocol; None with a surrogate, a file.

    Args:
        stage: The stage.
        model: What is attacked.
        samples: N, of the defender.
        surrogate: What the stage's `surrogate` names, where that was loaded.

    Raises:
        RequestError: An option is wrong.
    """
    given = _given(stage)
    own = _adaptive_options(given)
    if own.pop("surrogate", None) is not None and surrogate is None:
        return None
    for name in own.keys() & OPTIONS.keys():
        own[name] = OPTIONS[name].reader.kind(own[name])
    if "n_attacked" in own:
        own["n_attacked"] = int(own["n_attacked"])
    scale = str(given.get("pixel_range", "0:1"))
    return prepare_adaptive(
        model, **own, n_samples=samples, pixel_range=scale, surrogate=surrogate or ()
    )


def _adaptive_options(given: dict[str, Any]) -> dict[str, Any]:
    own = ("method", "n_attacked", "surrogate", *OPTIONS)
    return adaptive_options({name: value for name, value in given.items() if name in own})


def train_options(stage: Stage) -> TrainOptions:
    """Return the options of a `train` stage.

    Raises:
        RequestError: One is wrong.
    """
    given, found = _given(stage), {}
    for one in dataclasses.fields(TrainOptions):
        if one.name in given:
            found[one.name] = type(one.default)(given[one.name])  # type: ignore[misc]
    return TrainOptions(**found)


def samples_of(stage: Stage) -> tuple[int, ...] | None:
    """Return the Ns that a stage asks for; None for the defense's own.

    Raises:
        RequestError: They are no numbers.
    """
    return counts_of(_given(stage).get("n_samples"))


def _given(stage: Stage) -> dict[str, Any]:
    """Return the options that are not left out, under the names of their parameters."""
    options = not_left_out(stage.options).items()
    return {name.replace("-", "_"): value for name, value in options}
