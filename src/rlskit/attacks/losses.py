"""What gradient attacks ascend: a loss per image that grows as the label loses.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]`, `[B]`."""
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
        raise RequestError(f"--loss dlr needs at least 3 classes, not {logits.shape[1]}")
    top = logits.topk(3, dim=1).values
    return trail(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": trail,
    "dlr": dlr,
}
"""`--loss` -> (logits, labels) -> loss per image."""


def signed(loss: str, targeted: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what to ascend: the loss of the true label, or minus that of the target."""
    function = LOSSES[loss]
    if not targeted:
        return function
    return lambda logits, targets: -function(logits, targets)


def gradient(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    samples: int = 1,
) -> Tensor:
    """Return the gradient of the loss per image, summed over `samples` calls of the model.

    The losses are summed, not averaged, so that an image's gradient is what it is alone.
    """
    x = x.detach().requires_grad_()
    total = torch.zeros((), device=x.device)
    for _ in range(samples):
        total = total + loss(model(x), labels).sum()
    (slope,) = torch.autograd.grad(total, x)
    return slope
