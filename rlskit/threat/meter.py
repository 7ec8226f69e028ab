"""What an attack costs, counted where the attacker's view is asked."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rlskit.threat.view import DrawsView


class Meter(nn.Module):
    """Counts what an attack costs: images through forward and backward passes of single draws."""

    def __init__(self, view: nn.Module, draws_per_call: int) -> None:
        super().__init__()
        self.view = view
        self.forwards = 0
        self.backwards = 0
        self._draws = draws_per_call

    @property
    def members(self) -> list[nn.Module]:
        """The fixed draws of a view of several, for attacks that ask them one by one.

        What they are asked counts here. Empty for a single draw, and where every call has fresh
        ones.
        """
        fixed = self.view.members if isinstance(self.view, DrawsView) else ()
        return [_Member(member, self._count) for member in fixed]

    def forward(self, images: Tensor) -> Tensor:
        """Answer as the view does."""
        return self._count(self.view(images), self._draws)

    def _count(self, logits: Tensor, draws_asked: int) -> Tensor:
        """Note the answer of some draws, and return it."""
        passes = logits.shape[-2] * draws_asked
        self.forwards += passes

        def count_backward(_: Tensor) -> None:
            self.backwards += passes

        if logits.requires_grad:
            logits.register_hook(count_backward)  # type: ignore[no-untyped-call]
        return logits


class _Member(nn.Module):
    """One draw of a view that a meter watches."""

    def __init__(self, draw: nn.Module, count: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.draw = draw
        self._count = count

    def forward(self, images: Tensor) -> Tensor:
        """Answer as the draw does."""
        return self._count(self.draw(images), 1)
