"""Attacks that try several times: each attempt sees only the images that no former one fooled.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import trail


@dataclass(frozen=True)
class Found:
    """What one attempt found.

    Attributes:
        images: A fooling point where there is one, elsewhere the point of highest loss,
            `[B, C, H, W]`.
        loss: The highest loss, `[B]`.
        fooled: Where the model was fooled, bool `[B]`.
    """

    images: Tensor
    loss: Tensor
    fooled: Tensor


Attempt = Callable[[Tensor, Tensor], Found]
"""Maps clean images that the model gets right, and their labels, to what was found for them."""


def best_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attempts: Callable[[int], Iterable[Attempt]],
    samples: int = 1,
) -> Tensor:
    """Run attempts one after the other, until every image is fooled.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        attempts: Maps the number of classes to the attempts. Their losses are compared.
        samples: Calls of the model that its answer to a clean image is the mean of.

    Returns:
        Where the model errs anyway, the image itself; where it was fooled, the point that did it;
        elsewhere the point of highest loss, not the clean image: what does not fool the attacked
        draw may still fool another.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    result = images.detach().clone()
    with under_attack(model):
        with torch.no_grad():
            logits = [model(result) for _ in range(samples)]
        fooled = answer(logits) != labels
        highest = torch.full_like(logits[0][:, 0], float("-inf"))
        for attempt in attempts(logits[0].shape[1]):
            rows = (~fooled).nonzero().squeeze(1)
            if not len(rows):
                break
            found = attempt(images[rows].detach(), labels[rows])
            better = found.fooled | (found.loss > highest[rows])
            result[rows[better]] = found.images[better]
            highest[rows] = torch.maximum(highest[rows], found.loss)
            fooled[rows] = found.fooled
    return result


SURE_LEAD = 0.1
"""An error is sure whose lead is so much of the largest logit: neither another batch, nor unfolded
layers, nor half precision round so coarsely."""


def surely_fooled(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Say where every call of the model errs by more than rounding can undo, bool `[B]`.

    Args:
        logits: Logits or log-probabilities, `[B, K]` of each call.
        labels: True classes, long `[B]`.
    """
    leads = [trail(one, labels) > SURE_LEAD * one.abs().amax(1) for one in logits]
    return torch.stack(leads).all(0) & (answer(logits) != labels)


def answer(logits: list[Tensor]) -> Tensor:
    """Return the class of the highest mean probability over several calls, long `[B]`.

    Args:
        logits: Logits or log-probabilities, `[B, K]` of each call.
    """
    if len(logits) == 1:  # a softmax can make two near logits equal
        return logits[0].argmax(1)
    return torch.stack(logits).softmax(2).mean(0).argmax(1)
