"""The options of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlskit.arguments import argument, check_types
from rlskit.data import AUGMENTATIONS
from rlskit.errors import RequestError
from rlskit.pixels import parse_budget
from rlskit.text import nearest
from rlskit.training.objectives import LOSSES

SCHEDULES = ("step", "cosine", "one-cycle")
ADVERSARIES = ("none", "pgd")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of a training; the defaults are the paper's (sections 3.2 and 4.1).

    Attributes:
        epochs: Passes over the training images; 50 for MNIST in the paper, 150 for the others.
        batch_size: Images per step.
        group_size: K, the sampled models per step.
        loss: `ce` is -log F_y of the mean prediction F, `mse` its squared distance to the one-hot
            label, summed over classes (eq. 6 and 7).
        individual: Weight w in [0, 1] of the mean of the K single losses; the group loss has 1 - w.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        schedule: `step` divides the learning rate by 10 every `step_epochs`; `cosine`; `one-cycle`.
        step_epochs: Epochs between two divisions.
        augment: One of `rlskit.data.AUGMENTATIONS`.
        amp: Compute in bfloat16 where torch's autocast does.
        holdout: Share of the training images kept to choose the best epoch by.
        bn_batches: Batches that the BatchNorm statistics are re-estimated on, over random plans.
        num_workers: Threads that decode images.
        seed: Seeds plans, order, augmentation, noise and dropout.
        adversarial: `pgd` trains on images that PGD found, and chooses the best epoch by the
            accuracy on held-out ones attacked likewise; `none` on the images as they are.
        adversarial_eps: Largest change of a pixel, in [0, 1] units; a text is read as a number.
        adversarial_steps: Steps of PGD; each costs as much as the training step itself.
        adversarial_step_size: Length of a step, likewise.
    """

    epochs: int = 50
    batch_size: int = 128
    group_size: int = 3
    loss: str = "ce"
    individual: float = 0.0
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    step_epochs: int = 50
    augment: str = "none"
    amp: bool = False
    holdout: float = 0.05
    bn_batches: int = 50
    num_workers: int = 0
    seed: int = 0
    adversarial: str = "none"
    adversarial_eps: float | str = "8/255"
    adversarial_steps: int = 10
    adversarial_step_size: float | str = "2/255"

    def __post_init__(self) -> None:
        check_types(vars(self), TrainOptions)
        for name in ("epochs", "batch_size", "group_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise RequestError(f"`{name}` must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "bn_batches", "num_workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(
                    f"`{name}` must be a number of at least 0, not {getattr(self, name)}"
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RequestError(f"`lr` must be a positive number, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise RequestError(f"`momentum` is a share in [0, 1), not {self.momentum}")
        if not 0 <= self.individual <= 1:
            raise RequestError(f"`individual` is a weight in [0, 1], not {self.individual}")
        if not 0 <= self.holdout < 1:
            raise RequestError(f"`holdout` is a share in [0, 1), not {self.holdout}")
        if self.adversarial_steps < 1:
            raise RequestError(
                f"`adversarial_steps` must be at least 1, not {self.adversarial_steps}"
            )
        for name in ("adversarial_eps", "adversarial_step_size"):
            length = parse_budget(getattr(self, name), option=argument(name))
            if length == 0:
                raise RequestError(f"{argument(name)} must be above 0")
            object.__setattr__(self, name, length)
        known = (
            ("loss", LOSSES), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS),
            ("adversarial", ADVERSARIES),
        )  # fmt: skip
        for name, values in known:
            if getattr(self, name) not in values:
                raise RequestError(
                    f"`{name}` {getattr(self, name)!r} is unknown; "
                    f"{nearest(str(getattr(self, name)), values)}"
                )
