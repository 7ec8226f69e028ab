"""Adaptive diversity promoting training of an ensemble (Pang et al. 2019, arXiv 1901.08846).

The members are trained together on the sum of their cross-entropies, minus alpha times the entropy
of their mean prediction, minus beta times the log-determinant of how their predictions of the wrong
classes span space. At test they are an ensemble.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlskit.defenses.defense import Settings
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SETTINGS = {"alpha": 2.0, "beta": 0.5}
"""Weights of the ensemble's entropy and of the log-determinant."""

_JITTER = 1e-6  # on the determinant's diagonal, as in the authors' code


def loss(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """Return the mean over images of `sum_k CE_k - alpha H(F) - beta log det(V^T V)`.

    Args:
        logits: Of the K members, `[K, B, classes]`.
        labels: `[B]`.
        settings: `alpha` and `beta`.
    """
    log_probabilities = logits.log_softmax(-1)
    picked = labels.expand(len(logits), -1)[..., None]
    cross_entropies = -log_probabilities.gather(-1, picked).sum(0).mean()
    return (
        cross_entropies
        - settings["alpha"] * entropy(log_probabilities).mean()
        - settings["beta"] * log_determinant(log_probabilities, labels).mean()
    )


def entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy of the members' mean prediction, `[B]`, from `[K, B, classes]`."""
    mean = log_probabilities.logsumexp(0) - math.log(len(log_probabilities))
    return -(mean.exp() * mean).sum(-1)


def log_determinant(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return log det(V^T V), `[B]`; V's K columns are the members' predictions of wrong classes.

    Args:
        log_probabilities: `[K, B, classes]`.
        labels: `[B]`; their classes are left out, the rest of each column has length 1.
    """
    members, images, classes = log_probabilities.shape
    wrong = torch.arange(classes - 1, device=labels.device).expand(images, -1)
    wrong = wrong + (wrong >= labels[:, None])  # not by a mask, for which an accelerator waits
    columns = log_probabilities.gather(-1, wrong.expand(members, -1, -1)).transpose(0, 1)
    columns = _normalized(columns)
    gram = columns @ columns.mT
    gram = gram + _JITTER * torch.eye(members, dtype=gram.dtype, device=gram.device)
    return torch.logdet(gram)


def _normalized(log_columns: Tensor) -> Tensor:
    """Return vectors of length 1 from the logarithms of some, however small they are."""
    return (log_columns - 0.5 * (2 * log_columns).logsumexp(-1, keepdim=True)).exp()


def check(model: BankedModel) -> None:
    """Require at most as many members as there are wrong classes: more always lie in one plane.

    Raises:
        RequestError: There are more.
    """
    if model.num_banks > model.card.classes - 1:
        raise RequestError(
            f"`defense='adp'` with {model.card.classes} classes takes at most "
            f"{model.card.classes - 1} banks, not {model.num_banks}"
        )
