"""Which attacks, protocols, models and ways of scoring go together."""

from __future__ import annotations

from pathlib import Path

from rlskit.attacks import ATTACKS
from rlskit.defenses import defense_of
from rlskit.errors import RequestError
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.models.banks import BankedModel
from rlskit.threat.single import Threat, check_risk


def check_request(
    threat: Threat, model: BankedModel, options: EvalOptions, out: Path | None
) -> None:
    """Require an attack that its protocol, view and model can serve.

    Raises:
        RequestError: They do not go together.
    """
    if threat.attack.stated.get("step_size") == 0 and threat.attack.stated["eps"]:
        raise RequestError("`step_size` 0 leaves every image where it starts; leave it out")
    if threat.protocol == "eot" and threat.attack.norm is None:
        raise RequestError(
            f"`protocol='eot'` needs an attack with a budget, not {threat.attack.method}: a search "
            "for the smallest perturbation needs the same classifier at every step"
        )
    if threat.protocol == "eot" and ATTACKS[threat.attack.method].fixed_draws:
        raise RequestError(
            f"`protocol='eot'` has fresh draws at every call, and {threat.attack.method} needs "
            "fixed ones; use `protocol='multi'` with `n_attacked` 8 to 16"
        )
    _check_risk(threat)
    if threat.compiled and not ATTACKS[threat.attack.method].compiles:
        raise RequestError(
            f"`compiled` cannot serve {threat.attack.method}, which differentiates one forward "
            "pass several times; leave it out"
        )
    if threat.compiled and defense_of(model).acts:
        raise RequestError(
            f"`compiled` cannot serve `defense={model.card.defense!r}`, which acts on a network "
            "while it runs; leave it out"
        )
    check_scoring(options.counts(model), save=threat.save, out=out)


def _check_risk(threat: Threat) -> None:
    check_risk(threat.risk)
    if threat.risk == "gibbs" and threat.protocol != "eot":
        raise RequestError("`risk='gibbs'` is for `protocol='eot'`: it averages over fresh draws")
    if threat.risk == "gibbs" and threat.attack.params.get("eot_samples") != 1:
        raise RequestError(
            f"`risk='gibbs'` averages the gradients of `n_attacked` draws, which "
            f"{threat.attack.method} cannot, or is told otherwise by `eot_samples`; leave it out"
        )


def check_scoring(counts: tuple[int, ...], *, save: bool, out: Path | None) -> None:
    """Require one N under attack, and a folder for images that are to be saved.

    Raises:
        RequestError: There are several, or none.
    """
    if len(counts) > 1:
        raise RequestError(
            "an attack is scored with one `n_samples`; save its images and sweep them with eval"
        )
    if save and out is None:
        raise RequestError("the adversarial images need a folder: give `out`")
