"""Defenses: anything that answers with a classifier when asked for a draw.

A draw is an ordinary module, images to logits, with no randomness left in it, and a pure function
of (model, seed, purpose, repeat, index). To add a defense, write one file and one line in
`rlskit.defenses.catalogue`; docs/defenses.md shows how.
"""

from rlskit.defenses.catalogue import DEFENSES
from rlskit.defenses.defense import Defense
from rlskit.defenses.drawing import (
    check_effect,
    classifier_of,
    defense_of,
    draws,
    made_ready,
    training_logits,
)

__all__ = [
    "DEFENSES",
    "Defense",
    "check_effect",
    "classifier_of",
    "defense_of",
    "draws",
    "made_ready",
    "training_logits",
]
