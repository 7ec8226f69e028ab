"""Randomness: every draw is a pure function of (seed, purpose, indices), never of global state."""

from __future__ import annotations

import hashlib
from enum import StrEnum, unique
from typing import TYPE_CHECKING

from rlskit.errors import RequestError

if TYPE_CHECKING:
    import torch


@unique
class Purpose(StrEnum):
    """What randomness is for, so that no two uses share a stream.

    The texts are part of every number that was ever published: none may change.
    """

    ATTACKER = "attacker"  # draws in the attacker's fixed view
    DEFENDER = "defender"  # draws that answer
    EOT = "eot"  # draws in the attacker's view, fresh at every call
    JUDGE = "judge"  # draws that tell the adaptive protocol what is broken
    DIVERSITY = "diversity"  # draws that are compared with each other
    HOLDOUT = "holdout"  # the images that choose the best epoch, and the draws they are scored on
    THRESHOLD = "threshold"  # the images that say how much disagreement is answered
    EFFECT = "effect"  # the draw that shows whether a defense does something
    RATE = "rate"  # the draw that an hour's work is estimated by
    VARIATES = "variates"  # a draw's own noise and masks

    ATTACK = "attack"  # an attack's stream, which its images' streams are made of
    ADAPTIVE = "adaptive"  # likewise, of one part of the adaptive protocol
    DRAW_TO_DRAW = "draw-to-draw"  # likewise, of the transfer between draws
    TARGET = "target"  # from here on of one image each: the class it is moved to
    START = "start"  # PGD's random start
    UNIFORM = "uniform"  # noise of that distribution
    GAUSSIAN = "gaussian"
    APGD_CE = "apgd ce"  # APGD's random start, by its loss
    APGD_CE_SATURATING = "apgd ce-saturating"
    APGD_MARGIN = "apgd margin"
    APGD_DLR = "apgd dlr"
    APGD_T = "apgd-t"
    APGD_L1 = "apgd-l1"
    DDN = "ddn"  # of adv-lib, where the gradient is 0
    FAB = "fab"
    INWARD = "inward"  # the direction of the logits that a start is moved along
    SQUARE = "square"
    PIXLE = "Pixle"
    ONEPIXEL = "OnePixel"

    INIT = "init"  # the weights of a bank
    JITTER = "jitter"  # the noise on a copied bank
    TRIAL = "trial"  # what a factory of one's own draws when it is tried
    TRAIN_ORDER = "train-order"  # the images' order and augmentation
    TRAIN_PLANS = "train-plans"
    TRAIN_NOISE = "train-noise"  # dropout, drop path, the defense's own
    HOLDOUT_ATTACK = "holdout-attack"
    BATCH_NORM_ORDER = "batch-norm-order"  # of the images that the statistics are estimated on
    BATCH_NORM_PLANS = "batch-norm-plans"
    BATCH_NORM_NOISE = "batch-norm-noise"
    IMAGE_ORDER = "image-order"  # in which images are taken until a bound decides
    BOOTSTRAP = "bootstrap"  # the resampled images behind an interval

    ANSWER = "answer"  # from here on of the audit: an own module's randomness where it answers
    BOUNDARY = "boundary"  # and where it is measured whether it takes the images
    INFLUENCE = "influence"
    VARIATION = "variation"
    COSINE = "cosine"
    VANISHING = "vanishing"
    RANDOM_SEARCH = "random search"
    POINT = "point"  # one point of that search, by image
    BINARIZATION = "binarization"


def purpose_of(name: str) -> Purpose:
    """Return the purpose of a name, such as `attacker` or `defender`.

    Raises:
        RequestError: There is none.
    """
    try:
        return Purpose(name)
    except ValueError:
        raise RequestError(
            f"`purpose` {name!r} is unknown; it is one of {', '.join(Purpose)}"
        ) from None


def derive(seed: int, purpose: Purpose, *indices: int | str) -> int:
    """Return a 63-bit seed that depends on nothing but the arguments.

    Args:
        seed: The user's `seed`.
        purpose: What the randomness is for.
        indices: For example the repeat and the index of the draw, or an image's digest.
    """
    key = "|".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: Purpose, *indices: int | str) -> torch.Generator:
    """Return a fresh CPU generator seeded with `derive(seed, purpose, *indices)`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, *indices))
