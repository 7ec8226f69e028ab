"""What gradient attacks ascend: a loss per image that grows as the label loses.

Shapes: B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlskit.attacks.guard import slope_of
from rlskit.errors import RequestError


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the label's logit leads the best other one, `[B]`; negative where fooled.

    The difference is the same for logits of any sign and for log-probabilities. (Masking the
    label's column with 0 instead, as torchattacks does, makes it 0 when all logits are negative.)

    Args:
        logits: Logits or log-probabilities, `[B, K]`.
        labels: True classes, long `[B]`.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own - others.max(1).values


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log of the odds against the label, `log((1 - p) / p)`, `[B]`.

    It orders points as the cross-entropy does, and its gradient has the same direction everywhere;
    but where an answer is confident, it goes on falling. There the cross-entropy's gradient shrinks
    with 1 - p, and once 1 - p is less than rounding, it points elsewhere or is 0: an attack wanders
    or stands still, and the image looks robust.

    Args:
        logits: Logits or log-probabilities, `[B, K]`.
        labels: True classes, long `[B]`.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (others - own).logsumexp(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]`, `[B]`, as torchattacks ascends it; it saturates."""
    return F.cross_entropy(logits, labels, reduction="none")


def trail(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negated `margin`: by how much the best other logit leads the label's, `[B]`."""
    return -margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, `[B]`: the trail in units that no scaling changes.

    Croce & Hein 2020, section 4 (https://arxiv.org/abs/2003.01690).

    Raises:
        RequestError: Fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise RequestError(f"`loss='dlr'` needs at least 3 classes, not {logits.shape[1]}")
    top = logits.topk(3, dim=1).values
    return trail(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits `[B, K]`, labels) -> loss per image, `[B]`."""

LOSSES: dict[str, Loss] = {
    "ce": log_odds,
    "margin": trail,
    "dlr": dlr,
    "ce-saturating": cross_entropy,
}
"""`--loss` -> (logits, labels) -> loss per image."""


Objective = Callable[[list[Tensor], Tensor], Tensor]
"""(logits `[B, K]` of each call of the model, labels) -> what to ascend, `[B]`."""


def objective(loss: str, targeted: bool = False) -> Objective:
    """Return the mean over calls of the loss of the true label, or minus that of the target.

    Args:
        loss: A key of `LOSSES`.
        targeted: Whether the labels are the classes to reach.
    """

    def value(answers: list[Tensor], labels: Tensor) -> Tensor:
        losses = torch.stack([LOSSES[loss](logits, labels) for logits in answers])
        mean = mean_over_calls(losses, odds=loss == "ce")
        return -mean if targeted else mean

    return value


def mean_over_calls(losses: Tensor, *, odds: bool) -> Tensor:
    """Return the mean over calls of a random model, `[B]`.

    Log odds are averaged as the cross-entropies that they stand for: the log of the mean
    cross-entropy is what comes out, which ranks points as the mean does and does not saturate.

    Args:
        losses: `[calls, B]`.
        odds: Whether they are log odds.
    """
    if not odds or len(losses) == 1:
        return losses.mean(0)
    far = losses.clamp_min(-CONFIDENT)  # where log(1 + e^t) is e^t to rounding
    logs = torch.where(losses < -CONFIDENT, losses, F.softplus(far).log())
    return logs.logsumexp(0) - math.log(len(losses))


CONFIDENT = 36.0
"""Below minus this, log odds are the log of the cross-entropy, even in float64."""


def gradient(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    objective: Objective,
    samples: int = 1,
) -> Tensor:
    """Return the gradient per image of the objective of `samples` calls of the model.

    The images' values are summed, not averaged, so that an image's gradient is what it is alone.
    """
    x = x.detach().requires_grad_()
    value = objective([model(x) for _ in range(samples)], labels)
    return slope_of(value.sum(), x)


def scaled(slope: Tensor) -> Tensor:
    """Return each image's gradient times the power of two that puts its largest entry in [0.5, 1).

    So that neither squares nor sums of tiny or huge entries are lost. A power of two rounds
    nothing. Where there is no gradient there is none after.

    Args:
        slope: `[B, C, H, W]`.
    """
    exponent = torch.frexp(slope.abs().amax((1, 2, 3), keepdim=True)).exponent
    return (slope.double() * torch.exp2(-exponent.double())).to(slope.dtype)


GRAY_LEVEL = 1 / 255
"""Smallest change of an 8-bit pixel, in [0, 1]."""


def unfollowable(slope: Tensor, logits: Tensor, loss: str) -> Tensor:
    """Say where a gradient is too small to be followed, or 0, bool `[B]`.

    A gray level in every pixel, each in the direction that the gradient gives, promises to change
    the loss by no more than what it is computed from is rounded to. So the gradient is what
    rounding left of it, and an attack that follows it wanders.

    Args:
        slope: Of the loss, `[B, C, H, W]`.
        logits: That it was taken of, `[B, K]`.
        loss: A key of `LOSSES`.
    """
    promise = GRAY_LEVEL * slope.flatten(1).abs().double().sum(1)
    size = logits.detach().abs().amax(1).double()
    if loss == "dlr":  # a ratio
        size = torch.ones_like(size)
    return promise <= torch.finfo(logits.dtype).eps * size
