"""What several draws answer together: their logits, their mean prediction, how they disagree."""

from __future__ import annotations

import math

from torch import Tensor, nn

from rlskit.errors import UntrustedError
from rlskit.models.sharing import draw_logits


def finite_logits(defenders: list[nn.Module], images: Tensor) -> Tensor:
    """Return the draws' logits `[N, B, classes]`.

    Raises:
        UntrustedError: Some are NaN or infinite: their argmax would be a class all the same.
    """
    logits = draw_logits(defenders, images)
    if not logits.isfinite().all():
        draw, image = (~logits.isfinite()).nonzero()[0][:2].tolist()
        raise UntrustedError(
            f"draw {draw} answers with NaN or infinite logits, first for image {image} of a block; "
            "such an image counts neither as right nor as wrong"
        )
    return logits


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Return the log of the mean probability over draws, exact in log space.

    Args:
        logits: `[N, B, classes]`.

    Returns:
        `[B, classes]`.
    """
    log_probabilities = logits.log_softmax(dim=-1)
    return log_probabilities.logsumexp(dim=0) - math.log(len(logits))


def behind(logits: Tensor) -> Tensor:
    """Return by how much each class's probability is behind that of its draw's likeliest class.

    Between classes it differs as the probabilities do. But those of tiny logits, as of a head that
    answers with exp(-distance), are one and the same to rounding.

    Args:
        logits: `[N, B, classes]`.

    Returns:
        Likewise, at most 0, float64.
    """
    ahead = logits.double()
    ahead = ahead - ahead.amax(-1, keepdim=True)
    return ahead.expm1() / ahead.exp().sum(-1, keepdim=True)


def joint_answer(logits: Tensor) -> Tensor:
    """Return the class whose mean probability over draws is largest, long `[B]`.

    Args:
        logits: `[N, B, classes]`.
    """
    return behind(logits).sum(0).argmax(-1)


def mutual_information(logits: Tensor) -> Tensor:
    """Return how much the draws disagree, `[B]` in nats: H(mean of p_n) - mean of H(p_n).

    It is what an answer says of which draw it is from: 0 where all predict alike, however unsure,
    and at most the logarithm of the number of draws, or of classes (Houlsby et al. 2011, BALD,
    https://arxiv.org/abs/1112.5745).

    Args:
        logits: `[N, B, classes]`.
    """
    log_probabilities = logits.double().log_softmax(dim=-1)
    mean = mean_log_probabilities(logits.double())
    return _entropy(mean) - _entropy(log_probabilities).mean(0)


def _entropy(log_probabilities: Tensor) -> Tensor:
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
