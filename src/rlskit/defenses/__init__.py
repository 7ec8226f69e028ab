"""Defenses: anything that answers with a classifier when asked for a draw.

A draw is an ordinary module, images to logits, with no randomness left in it, and a pure function
of (model, seed, purpose, repeat, index). To add a defense, write one file and one line here;
docs/defenses.md shows how.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.defenses import adp, dropout, ensemble, rls, rse, sap
from rlskit.defenses.defense import Defense
from rlskit.defenses.perturbed import PerturbedDraw
from rlskit.defenses.variates import Fresh
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

__all__ = [
    "DEFENSES",
    "Defense",
    "check_effect",
    "classifier_of",
    "defense_of",
    "draws",
    "training_logits",
]

DEFENSES: dict[str, Defense] = {
    "none": Defense("the undefended network", distinct=lambda _: 1),
    "rls": Defense(
        "random layer sampling: each layer from a random bank",
        samples=lambda _: rls.SAMPLES, plan=rls.plan, group=rls.group, banks=2, granularity="layer",
    ),
    "ensemble": Defense(
        "M networks trained separately, mean prediction",
        samples=ensemble.members, distinct=ensemble.members, plan=ensemble.plan,
        group=ensemble.group, separate=True, banks=3,
    ),
    "adp": Defense(
        "M networks trained together to differ where they are wrong",
        samples=ensemble.members, distinct=ensemble.members, plan=ensemble.plan,
        group=ensemble.group, loss=adp.loss, settings=adp.SETTINGS, check=adp.check, banks=3,
    ),
    "rse": Defense(
        "Gaussian noise before every convolution",
        samples=lambda _: rse.SAMPLES, perturb=rse.perturb, settings=rse.SETTINGS, check=rse.check,
    ),
    "dropout": Defense(
        "channels dropped after each stage, at test time too",
        samples=lambda _: dropout.SAMPLES, perturb=dropout.perturb, settings=dropout.SETTINGS,
        check=dropout.check, granularity="stage",
    ),
    "sap": Defense(
        "activations pruned at random after each ReLU, after training",
        samples=lambda _: sap.SAMPLES, perturb=sap.perturb, post_hoc=True, settings=sap.SETTINGS,
        check=sap.check,
    ),
}  # fmt: skip


def defense_of(model: BankedModel) -> Defense:
    """Return the defense that a model was converted for.

    Raises:
        RequestError: The model names one that there is not, or does not suit it.
    """
    name = model.card.defense
    if name not in DEFENSES:
        raise RequestError(f"the defense {name!r} is unknown; it is one of {', '.join(DEFENSES)}")
    defense = DEFENSES[name]
    if model.card.settings.keys() != defense.settings.keys():
        known = ", ".join(defense.settings) or "none"
        raise RequestError(
            f"the settings of the defense {name} are {known}, not "
            f"{', '.join(model.card.settings) or 'none'}"
        )
    defense.check(model)
    return defense


@torch.no_grad()
def check_effect(model: BankedModel) -> None:
    """Require that a defense that does something to its networks finds something to do it to.

    Raises:
        RequestError: It finds nothing, and would be none.
    """
    defense = defense_of(model)
    if defense.perturb is None:
        return
    (draw,) = draws(model, 1, seed=0, purpose="effect")
    assert isinstance(draw, PerturbedDraw)
    draw(torch.zeros(1, *model.card.pixels.shape, device=model.device))
    if not draw.variates.asked:
        raise RequestError(
            f"--defense {model.card.defense} finds nothing to act on in "
            f"{model.card.architecture.label} by {model.partition.granularity}: {defense.summary}"
        )


def draws(
    model: BankedModel,
    count: int,
    *,
    seed: int,
    purpose: str,
    repeat: int = 0,
    first: int = 0,
    image: int | None = None,
) -> list[nn.Module]:
    """Return `count` draws of the model's defense; those of a smaller count are the first of them.

    Args:
        model: The defended model.
        count: Number of draws, at least 1.
        seed: The user's seed.
        purpose: "attacker" and "defender" draws are independent.
        repeat: Index of the repeat.
        first: Index of the first draw.
        image: Index of the image in its data set, where each image has draws of its own.

    Raises:
        RequestError: `count` is below 1.
    """
    if count < 1:
        raise RequestError(f"the number of draws must be at least 1, not {count}")
    own = () if image is None else (image,)
    return [_draw(model, seed, purpose, repeat, first + index, *own) for index in range(count)]


def _draw(model: BankedModel, seed: int, purpose: str, *indices: int) -> nn.Module:
    defense = defense_of(model)
    classifier = model.sampled(defense.plan(model, seed, purpose, *indices))
    if defense.perturb is None:
        return classifier
    return PerturbedDraw(classifier, defense.perturb(model), seeds.derive(seed, purpose, *indices))


def classifier_of(draw: nn.Module) -> nn.Module:
    """Return the sampled model in a draw, without what the defense does to it."""
    return draw.classifier if isinstance(draw, PerturbedDraw) else draw


def training_logits(model: BankedModel, images: Tensor, plan: Tensor) -> Tensor:
    """Return a sampled model's logits `[B, classes]` as training sees them, with gradients.

    Noise and masks are other ones for every image, from torch's global generator.

    Args:
        model: The defended model.
        images: `[B, C, H, W]` in [0, 1].
        plan: Long `[L]`.
    """
    with _noise(model):
        logits: Tensor = model(images, plan)
    return logits


def _noise(model: BankedModel) -> AbstractContextManager[None]:
    defense = defense_of(model)
    if defense.perturb is None or defense.post_hoc:
        return nullcontext()
    return defense.perturb(model)(model.banks[0], Fresh())
