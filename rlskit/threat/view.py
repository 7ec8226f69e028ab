"""What the attacker sees: the protocols.

`transfer`: one fixed draw (the paper's Tables 1 to 3). `multi`: n fixed draws, attacked on their
mean prediction (Table 4). `eot`: n fresh draws at every gradient step. `known`: the very draws that
will answer, on their mean prediction (the deterministic white-box attack of Liu et al. 2024,
https://arxiv.org/abs/2404.14309): what it leaves is robust, and what another leaves beyond that is
hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlskit.defenses import draws, made_ready
from rlskit.defenses.answers import mean_log_probabilities
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.models.folding import InPieces, Made, compile_draw, pieces_of
from rlskit.models.gradient_precision import GradientsInBf16
from rlskit.models.layout import layout_of
from rlskit.models.sharing import draw_logits
from rlskit.seeds import Purpose
from rlskit.text import nearest

PROTOCOLS = ("transfer", "multi", "eot", "known")
VIEWS = ("mean-prob", "mean-logit")


MOST_DRAWS = 10_000
"""More draws, or repeats, than that are a mistake: each one costs memory and a pass."""


def protocol_of(protocol: str | None, n_attacked: int) -> str:
    """Return the protocol's name: by default `transfer` for one attacked draw, `multi` for more.

    Raises:
        RequestError: Unknown, or `n_attacked` does not fit it.
    """
    if n_attacked < 1:
        raise RequestError(f"`n_attacked` must be at least 1, not {n_attacked}")
    if n_attacked > MOST_DRAWS:
        raise RequestError(
            f"`n_attacked` {n_attacked} is beyond reason; it is {MOST_DRAWS} at most"
        )
    if protocol is None:
        return "transfer" if n_attacked == 1 else "multi"
    if protocol not in PROTOCOLS:
        raise RequestError(
            f"`protocol` {protocol!r} is unknown; {nearest(protocol, PROTOCOLS)}, or use "
            "`rlskit.attack_adaptively`"
        )
    if protocol == "transfer" and n_attacked != 1:
        raise RequestError(f"`protocol='transfer'` attacks 1 draw, not {n_attacked}; use multi")
    return protocol


def draws_seen(protocol: str, n_attacked: int, n_samples: int) -> int:
    """Return how many draws the attacker sees: under `known` those that answer.

    Raises:
        RequestError: Another number was asked for there.
    """
    if protocol != "known":
        return n_attacked
    if n_attacked not in (1, n_samples):
        raise RequestError(
            f"`protocol='known'` shows the attacker the {n_samples} draws that answer, not "
            f"{n_attacked}; leave `n_attacked` out"
        )
    return n_samples


def check_view(view: str) -> None:
    """Require one of `VIEWS`.

    Raises:
        RequestError: It is another.
    """
    if view not in VIEWS:
        raise RequestError(f"`view` {view!r} is unknown; {nearest(view, VIEWS)}")


class DrawsView(nn.Module):
    """Several draws as one classifier: the log of their mean probability, or the mean logit.

    What they compute alike is computed once, and the gradient through it once as well.
    """

    def __init__(self, members: Sequence[nn.Module], view: str = "mean-prob") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.view = view

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, classes]`."""
        members = list(self.members)
        pieces = pieces_of(members, images)
        logits = torch.cat([draw_logits(members, piece) for piece in pieces], dim=1)
        if self.view == "mean-logit":
            return logits.mean(0)
        return mean_log_probabilities(logits)


class FreshDraws(nn.Module):
    """A classifier that answers every call with n draws never seen before, for EOT attacks."""

    def __init__(self, draw: Callable[[int], list[nn.Module]], view: str) -> None:
        super().__init__()
        self._draw = draw
        self._view = view
        self._calls = 0

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, classes]`."""
        members = self._draw(self._calls)
        self._calls += 1
        logits: Tensor = DrawsView(members, self._view)(images)
        return logits


def attackers_view(
    model: BankedModel,
    protocol: str,
    n_attacked: int,
    *,
    seed: int,
    repeat: int,
    view: str = "mean-prob",
    folded: bool = True,
    compiled: bool = False,
    bf16: bool = False,
    image: int | None = None,
) -> nn.Module:
    """Return the classifier that an attack is computed on.

    Fresh draws are a function of the repeat and of how often the view has been called before, so
    that what befalls an image does not depend on the block it stands in.

    Args:
        model: The defended model.
        protocol: One of `PROTOCOLS`.
        n_attacked: Number of draws in the view.
        seed: The user's seed.
        repeat: Index of the repeat; another repeat is another view.
        view: One of `VIEWS`.
        folded: Whether the draws are made ready for many gradients (`rlskit.models.folding`), which
            changes their logits by rounding only.
        compiled: Whether they are compiled (`torch.compile`), once for all draws and batch sizes.
        bf16: Whether their gradients are computed in bfloat16.
        image: Index of the image in its data set, where each image has draws of its own.

    Raises:
        RequestError: Unknown view.
    """
    check_view(view)
    made = Made()  # of the banks, for all draws of this view

    def members_of(purpose: Purpose, first: int) -> list[nn.Module]:
        found = draws(
            model, n_attacked, seed=seed, purpose=purpose, repeat=repeat, first=first, image=image
        )
        if folded:  # in place
            made_ready(model, found, made)
        found = [compile_draw(draw) for draw in found] if compiled else found
        found = [GradientsInBf16(draw) for draw in found] if bf16 else found
        return [InPieces(draw, layout_of(model)) for draw in found] if folded else found

    if protocol == "eot":
        return FreshDraws(lambda call: members_of(Purpose.EOT, call * n_attacked), view)
    members = members_of(Purpose.DEFENDER if protocol == "known" else Purpose.ATTACKER, 0)
    return members[0] if n_attacked == 1 else DrawsView(members, view)
