"""Training: group optimization, and what the other defenses minimise (paper, section 3.2)."""

from rlskit.training.batch_norm import reestimate_batch_norm
from rlskit.training.group_optimization import train
from rlskit.training.kept import EpochRecord, TrainingResult, unfinished_of
from rlskit.training.objectives import LOSSES, group_loss, separate_loss
from rlskit.training.train_options import SCHEDULES, TrainOptions

__all__ = [
    "LOSSES",
    "SCHEDULES",
    "EpochRecord",
    "TrainOptions",
    "TrainingResult",
    "group_loss",
    "reestimate_batch_norm",
    "separate_loss",
    "train",
    "unfinished_of",
]
