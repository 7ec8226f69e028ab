"""The logits of several draws, or none at all."""

from __future__ import annotations

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
