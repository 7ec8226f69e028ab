"""Draws of a model's defense: ordinary classifiers with no randomness left in them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.defenses.catalogue import DEFENSES
from rlskit.defenses.defense import Defense
from rlskit.defenses.perturbed import PerturbedDraw
from rlskit.defenses.variates import Fresh
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.folding import Made, ready_for_attack
from rlskit.seeds import Purpose, purpose_of
from rlskit.text import nearest

_TRIED = 16
"""Draws of a network with randomness of its own that are compared with each other."""


def defense_of(model: BankedModel) -> Defense:
    """Return the defense that a model was converted for.

    Raises:
        RequestError: The model names one that there is not, or does not suit it.
    """
    name = model.card.defense
    if name not in DEFENSES:
        raise RequestError(f"the defense {name!r} is unknown; {nearest(name, DEFENSES)}")
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
    if not defense.acts:
        return
    if defense.draw is not None:
        if defense.distinct(model) is None:
            _check_randomness(model)
        return
    images = torch.zeros(1, *model.card.pixels.shape, device=model.device)
    (draw,) = draws(model, 1, seed=0, purpose=Purpose.EFFECT)
    assert isinstance(draw, PerturbedDraw)
    draw(images)
    if not draw.variates.asked:
        raise RequestError(
            f"`defense={model.card.defense!r}` finds nothing to act on in "
            f"{model.card.architecture.label} by {model.partition.granularity}: {defense.summary}"
        )


def _check_randomness(model: BankedModel) -> None:
    """Require that draws differ from each other, and each not from itself.

    Raises:
        RequestError: They do not, or one does.
    """
    name = model.card.architecture.name
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, *model.card.pixels.shape, generator=generator).to(model.device)
    found = draws(model, _TRIED, seed=0, purpose=Purpose.EFFECT)
    answers = [draw(images) for draw in found]
    if not all(torch.equal(one, draw(images)) for one, draw in zip(answers, found, strict=True)):
        raise RequestError(
            f"{name} draws random numbers where no seed reaches, so no draw of it can be held: it "
            "has torch's, Python's and NumPy's global generators, and those that are attributes "
            "of its modules"
        )
    if all(torch.equal(answers[0], other) for other in answers[1:]):
        raise RequestError(
            f"`defense='stochastic'` finds no randomness in {name} in eval mode; convert it with "
            "`defense='none'`"
        )


def draws(
    model: BankedModel,
    count: int,
    *,
    seed: int,
    purpose: Purpose | str,
    repeat: int = 0,
    first: int = 0,
    image: int | None = None,
) -> list[nn.Module]:
    """Return `count` draws of the model's defense; those of a smaller count are the first of them.

    Args:
        model: The defended model.
        count: Number of draws, at least 1.
        seed: The user's seed.
        purpose: What they are for: "attacker" and "defender" draws are independent.
        repeat: Index of the repeat.
        first: Index of the first draw.
        image: Index of the image in its data set, where each image has draws of its own.

    Raises:
        RequestError: `count` is below 1, or there is no such purpose.
    """
    if count < 1:
        raise RequestError(f"the number of draws must be at least 1, not {count}")
    own = () if image is None else (image,)
    known = purpose_of(purpose)
    return [_draw(model, seed, known, repeat, first + index, *own) for index in range(count)]


def _draw(model: BankedModel, seed: int, purpose: Purpose, *indices: int) -> nn.Module:
    defense = defense_of(model)
    classifier = model.sampled(defense.plan(model, seed, purpose, *indices))
    own = seeds.derive(seed, purpose, *indices)
    if defense.draw is not None:
        return defense.draw(model, classifier, own)
    if defense.perturb is None:
        return classifier
    return PerturbedDraw(classifier, defense.perturb(model), own)


def made_ready(model: BankedModel, found: list[nn.Module], made: Made | None = None) -> None:
    """Make draws ready for many gradients in place, as far as their defense allows it.

    Args:
        model: The defended model.
        found: The draws.
        made: What was made for earlier draws; these share it.
    """
    if defense_of(model).folds:
        ready_for_attack(model, [classifier_of(draw) for draw in found], made)


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
