"""Whether a model knows anything: an accuracy under attack means nothing where it only guesses.

A network that sees images of the wrong size, constants or range, or classes in another order, is
right about as often as guessing is. What it gets right then is no more than luck, which no attack
takes away: every attack looks harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlskit.data import Data, blocks
from rlskit.defenses import draws
from rlskit.defenses.answers import finite_logits, joint_answer
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.evaluation.subject import Subject
from rlskit.models.banks import BankedModel
from rlskit.seeds import Purpose
from rlskit.stats import clearly_more_than, guessed_share
from rlskit.threat.preflight import LOOKED_AT

LEAST = 20
"""Fewer images do not show that a model guesses: one right on three in ten may miss most."""


@dataclass(frozen=True)
class Knowledge:
    """What a model gets right of some images, and what guessing would.

    Attributes:
        right: How many images it is right on; a mean over repeats.
        n: How many there are.
        guessing: The share that guessing gets, in [0, 1].
        can_show: Whether so many images could show that it guesses.
    """

    right: float
    n: int
    guessing: float
    can_show: bool

    @property
    def accuracy(self) -> float:
        """The share that it is right on."""
        return self.right / self.n

    @property
    def above_guessing(self) -> bool:
        """Whether it is right on more of the images than guessing, beyond chance."""
        return clearly_more_than(self.right, self.n, self.guessing)

    @property
    def at_guessing(self) -> bool:
        """Whether it is not, and no lack of images explains it.

        A model that is nearer to perfect than to guessing may lack images only.
        """
        nearer = self.accuracy > (1 + self.guessing) / 2
        return self.can_show and not self.above_guessing and not nearer

    def below(self, expected: float, *, surely: bool) -> bool:
        """Whether its accuracy is below what was expected; surely, if other images should agree."""
        wrong = self.n - self.right
        return (
            clearly_more_than(wrong, self.n, 1 - expected) if surely else self.accuracy < expected
        )


def knowledge(labels: Tensor, answers: Sequence[Tensor], classes: int) -> Knowledge:
    """Compare a model's answers with guessing.

    Args:
        labels: Long `[n]`.
        answers: The predicted classes in each repeat, long `[n]`.
        classes: Number of classes.
    """
    n, true = len(labels), labels.numpy()
    right = sum(int((one == labels).sum()) for one in answers) / len(answers)
    guessing = max(guessed_share(true, one.numpy(), classes) for one in answers)
    can_show = n >= LEAST and clearly_more_than(n, n, guessed_share(true, true, classes))
    return Knowledge(right, n, guessing, can_show)


@torch.no_grad()
def look(model: BankedModel, data: Data, options: EvalOptions) -> Knowledge:
    """Return what the defender's draws of the first repeat know of some images.

    Raises:
        UntrustedError: Logits are not finite.
    """
    members = draws(model, options.counts(model)[-1], seed=options.seed, purpose=Purpose.DEFENDER)
    answers = [
        joint_answer(finite_logits(members, images.to(model.device))).cpu()
        for _, images, _ in blocks(data, options.batch_size, options.num_workers)
    ]
    return knowledge(data.labels, [torch.cat(answers)], model.card.classes)


def check_knowledge(
    found: Knowledge, options: EvalOptions, *, trained: bool, final: bool, shuffled: bool = False
) -> tuple[str, ...]:
    """Require a model that knows something, and as much as was expected of it.

    An untrained model, of which nothing is expected and on which no gate decides, is only warned
    of: its result says that it is untrained.

    Args:
        found: What it knows.
        options: `expect_clean` and `gated` are used.
        trained: Whether it is more than a random initialisation.
        final: Whether these are all images there are; else only what is sure is refused.
        shuffled: Whether more may be asked for, so that less than was expected may be bad luck.

    Returns:
        A sentence where there are too few images to tell.

    Raises:
        UntrustedError: It does not.
    """
    expected = options.expect_clean
    counted = f"{found.right:g} of {found.n} clean images"
    if expected is not None and found.below(expected, surely=shuffled or not final):
        raise UntrustedError(
            f"the clean accuracy is {100 * found.accuracy:.1f} % ({counted}), below the "
            f"{100 * expected:g} % of `expect_clean`; {_ADVICE}"
        )
    strict = options.gated or expected is not None
    if found.above_guessing:
        return ()
    guess = f"guessing gets {100 * found.guessing:.1f} %"
    if not (trained or strict):
        return (f"NO BETTER THAN GUESSING: right on {counted} ({guess}).",) if final else ()
    if found.at_guessing:
        raise UntrustedError(
            f"the model is right on {counted}, which guessing could be, too ({guess}), so an "
            f"accuracy under attack would mean nothing; {_ADVICE}"
        )
    if not final:
        return ()
    few = f"the model is right on {counted}, too few to tell it from guessing ({guess})"
    more = "take more images, of several classes"
    if strict:
        raise UntrustedError(f"{few}, so nothing can be decided by its numbers; {more}")
    return (f"TOO FEW IMAGES: {few}; {more}, before its numbers are believed.",)


def doubts_of(subject: Subject, options: EvalOptions) -> tuple[str, ...]:
    """Look at some clean images, where they are at hand; return what `check_knowledge` says.

    Raises:
        UntrustedError: The model only guesses.
    """
    if subject.clean is None:
        return ()
    found = look(subject.model, subject.clean.limited(LOOKED_AT), options)
    return check_knowledge(found, options, trained=subject.model.card.trained, final=True)


def known_of(subject: Subject, options: EvalOptions) -> Knowledge:
    """Return what a model knows of some of its images.

    Raises:
        UntrustedError: As `doubts_of`.
    """
    found = look(subject.model, subject.data.limited(LOOKED_AT), options)
    check_knowledge(found, options, trained=subject.model.card.trained, final=True)
    return found


def check_expectable(options: EvalOptions) -> None:
    """Require that no clean accuracy is expected where the clean images are not at hand.

    Raises:
        RequestError: One is.
    """
    if options.expect_clean is not None:
        raise RequestError(
            "`expect_clean` needs the clean images that the adversarial ones were made from, which "
            "are not at hand; leave it out here, and run `rlskit.evaluate` with it on them"
        )


def check_unseen(attacked: Knowledge, options: EvalOptions) -> tuple[str, ...]:
    """Do what can be done where only adversarial images are at hand, made of unknown clean ones.

    Args:
        attacked: What the model knows of the adversarial images.
        options: `gated` is used.

    Returns:
        A sentence where the model may know nothing at all.

    Raises:
        UntrustedError: A gate is to decide on a model that may know nothing.
    """
    if attacked.above_guessing:
        return ()
    doubt = (
        f"the model is right on {attacked.right:g} of {attacked.n} adversarial images, which "
        f"guessing could be, too, and its clean accuracy is not known here"
    )
    if options.gated:
        raise UntrustedError(f"{doubt}, so no gate can decide on it; run `rlskit.evaluate` on them")
    return (f"CLEAN ACCURACY UNKNOWN: {doubt}; `rlskit.evaluate` on the clean images tells it.",)


_ADVICE = (
    "is it trained, does it take images of this size, with these constants (`mean`, `std`), are "
    "its classes in this order, and does it expect images in [0, 1] and not 0..255?"
)
