"""The one place where a model is made ready for an attack, watched, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.errors import RlskitError, UntrustedError, of_memory, reason


@contextmanager
def under_attack(model: nn.Module) -> Iterator[None]:
    """Hold `model` in eval mode, its parameters without gradients, its numbers watched.

    Gradients are enabled inside, also where the caller disabled them. On leaving, also by an
    exception, every submodule's mode and every parameter's `requires_grad` are as before.

    Raises:
        UntrustedError: The logits do not depend differentiably on images whose gradient is wanted.
            On leaving: some logits, or some gradient of the images, were NaN or
            infinite. Such images would count neither as fooled nor as robust.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Flags stay on the device until the end: reading one at every step would stall a GPU.
    finite: list[tuple[str, Tensor]] = []

    def note(what: str, numbers: Tensor) -> None:
        if numbers.numel():
            finite.append((what, _all_finite(numbers.detach())))

    def watch(module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:  # noqa: ARG001
        note("logits", logits)
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            require_path(logits)
            inputs[0].register_hook(lambda gradient: note("gradients", gradient))

    watching = model.register_forward_hook(watch)
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        watching.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
    if finite and not torch.stack([flag for _, flag in finite]).all():
        first = next(what for what, flag in finite if not flag)
        raise UntrustedError(
            f"the model gave NaN or infinite {first} under attack, so its images count neither as "
            "fooled nor as robust; check its weights and the range of its outputs"
        )


def slope_of(value: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of a sum over images.

    Raises:
        UntrustedError: The model's operations have none, or refuse to be asked for it.
    """
    try:
        (slope,) = torch.autograd.grad(value, images)
    except RlskitError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        if of_memory(error):
            raise
        raise UntrustedError(
            f"the gradient of the model's logits cannot be computed ({reason(error)}), so gradient "
            "attacks cannot work; attack it by square, or by transfer from another model"
        ) from error
    return slope


def _all_finite(numbers: Tensor) -> Tensor:
    """Return whether all numbers are finite, from the two ends of their range: NaN is both."""
    return torch.stack(numbers.aminmax()).isfinite().all()


def require_path(logits: Tensor) -> None:
    """Require logits that a gradient of the images can be taken of.

    Raises:
        UntrustedError: They are cut off from the images, as by `detach()` or NumPy.
    """
    if not logits.requires_grad:
        raise UntrustedError(
            "the model's logits do not depend differentiably on its images, so gradient attacks "
            "cannot work; attack it by square, or by transfer from another model"
        )
