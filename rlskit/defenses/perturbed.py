"""Draws of defenses that do something to a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlskit.defenses.defense import Perturb
from rlskit.defenses.variates import Fixed
from rlskit.models.banks import Classifier


class PerturbedDraw(nn.Module):
    """A draw: a sampled model with the noise or masks of one realization, in whatever mode.

    Args:
        classifier: The sampled model.
        perturb: What is done to it while it runs.
        seed: Decides the realization.
    """

    def __init__(self, classifier: Classifier, perturb: Perturb, seed: int) -> None:
        super().__init__()
        self.classifier = classifier
        self._perturb = perturb
        self.variates = Fixed(seed)
        self.eval()

    def train(self, mode: bool = True) -> PerturbedDraw:  # noqa: ARG002
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[B, classes]`."""
        self.variates.begin()
        with self._perturb(self.classifier.network, self.variates):
            logits: Tensor = self.classifier(images)
        return logits


@contextmanager
def images_changed(network: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a network read changed images while this context is open.

    Args:
        network: Whose first argument are its images.
        change: Normalised images `[B, C, H, W]` -> those that it reads.
    """

    def changed(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(inputs[0]), *inputs[1:])

    hook = network.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        hook.remove()


class Intercept(TorchFunctionMode):
    """Calls of some torch functions go another way while this context is open.

    At the level of functions no architecture escapes, whether it uses torch's own modules, its own,
    or none (compare `rlskit.models.trace`).

    Args:
        functions: Which.
        instead: (function, positional arguments, keyword arguments) -> what is returned.
    """

    def __init__(
        self,
        functions: Iterable[Callable[..., Any]],
        instead: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        super().__init__()
        self._functions = frozenset(functions)
        self._instead = instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a call."""
        if func in self._functions:
            return self._instead(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
