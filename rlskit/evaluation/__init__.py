"""Evaluation: accuracy of the mean of N draws, on clean images and under attack.

The unit of work is a block, a fixed run of dataset indices: the same block gives the same numbers
in any order and after any interruption.
"""

from rlskit.evaluation.abstention import measure_abstention
from rlskit.evaluation.attacking import attack, attack_adaptively, attack_all
from rlskit.evaluation.clean import doubts_of, known_of
from rlskit.evaluation.diagnosis import Finding, diagnose, machine
from rlskit.evaluation.eval_options import EvalOptions, counts_of
from rlskit.evaluation.scoring import evaluate
from rlskit.evaluation.subject import Subject, subject_of

__all__ = [
    "EvalOptions",
    "Finding",
    "Subject",
    "attack",
    "attack_adaptively",
    "attack_all",
    "counts_of",
    "diagnose",
    "doubts_of",
    "evaluate",
    "known_of",
    "machine",
    "measure_abstention",
    "subject_of",
]
