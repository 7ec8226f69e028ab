"""Gradient alignment loss of an ensemble (Kariyappa & Qureshi 2019, arXiv 1901.09981).

The members are trained together on the sum of their cross-entropies, and on how far the gradients
of these by the image point the same way for two of them: where they do, what fools one fools the
other. At test they are an ensemble.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlskit.defenses.defense import Settings
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel

SETTINGS = {"weight": 0.5}
"""Of the alignment, against the mean cross-entropy."""


def loss(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:  # noqa: ARG001
    """Return the sum of the members' cross-entropies, each a mean over images.

    Args:
        logits: Of the K members, `[K, B, classes]`.
        labels: `[B]`.
        settings: Not used.
    """
    return torch.stack([F.cross_entropy(one, labels) for one in logits]).sum()


def penalty(logits: Tensor, labels: Tensor, images: list[Tensor], settings: Settings) -> Tensor:
    """Return K times `weight` times the mean over images of log sum_(a<b) exp cos(g_a, g_b).

    K times, as the loss is a sum of K where theirs is a mean: so the members learn at the rate of
    networks that are trained alone. The gradients are those of the log odds against the label,
    which point where those of the cross-entropy do and are not lost where a member is sure.

    Args:
        logits: Of the K members, `[K, B, classes]`.
        labels: `[B]`.
        images: What each member was shown, `[B, C, H, W]`, with gradients.
        settings: `weight`.

    Raises:
        RequestError: The logits do not depend on the images.
    """
    own = labels[:, None]
    gradients = []
    for one, shown in zip(logits, images, strict=True):
        others = one.scatter(-1, own, float("-inf"))
        odds = others.logsumexp(-1) - one.gather(-1, own)[:, 0]
        (slope,) = torch.autograd.grad(odds.sum(), shown, create_graph=True, allow_unused=True)
        if slope is None:
            raise RequestError(
                "`defense='gal'` needs logits that depend differentiably on the images"
            )
        gradients.append(slope.flatten(1))
    return len(logits) * settings["weight"] * alignment(gradients).mean()


def alignment(gradients: list[Tensor]) -> Tensor:
    """Return log sum_(a<b) exp cos(g_a, g_b) of the members' gradients `[B, pixels]`, `[B]`."""
    cosines = [F.cosine_similarity(a, b, eps=1e-30) for a, b in combinations(gradients, 2)]
    return torch.stack(cosines).logsumexp(0)


def check(model: BankedModel) -> None:
    """Require two members at least.

    Raises:
        RequestError: There is one.
    """
    if model.num_banks < 2:
        raise RequestError("`defense='gal'` compares the gradients of members; give 2 `banks`")
