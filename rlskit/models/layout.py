"""In which layout in memory a model's images and convolutions are computed.

Convolutions are faster channels last. A network may not work so: `x.view(x.size(0), -1)` after a
convolution is for the ordinary layout, and weights of five dimensions have no such layout. Each
model is tried once, on a few random images; where anything differs, the ordinary layout is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.models.banks import BankedModel, Classifier
from rlskit.models.copying import duplicate

_AGREEMENT = 0.01
"""Change of the logits, and of their gradient, as a fraction of their norm: above any rounding."""

_IMAGES = 2


def layout_of(model: BankedModel, *, training: bool = False) -> torch.memory_format:
    """Return the layout to use: channels last, or the ordinary one where that does not work.

    Args:
        model: It remembers the answer.
        training: Whether it must also work in training mode.
    """
    if training not in model.layouts:
        model.layouts[training] = _tried(model, training)
    return model.layouts[training]


def in_layout(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Return images laid out as the convolutions that are attacked; scoring keeps the ordinary."""
    return images.contiguous(memory_format=layout)


def to_layout(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay a module's convolutions out so, in place."""
    module.to(memory_format=layout)  # type: ignore[call-overload]


def _tried(model: BankedModel, training: bool) -> torch.memory_format:
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            works = _agrees(model) and not (training and not _trains(model))
        except Exception:  # whatever a forward or backward pass raises on another layout
            works = False
    return torch.channels_last if works else torch.contiguous_format


def _agrees(model: BankedModel) -> bool:
    """Say whether a draw has the same logits and gradients channels last."""
    draw = model.sampled(torch.zeros(model.num_layers, dtype=torch.long))
    ordinary = _logits_and_gradient(draw, model, torch.contiguous_format)
    to_layout(draw, torch.channels_last)
    other = _logits_and_gradient(draw, model, torch.channels_last)
    return all(
        (a - b).norm() <= _AGREEMENT * a.norm() for a, b in zip(ordinary, other, strict=True)
    )


def _logits_and_gradient(
    draw: Classifier, model: BankedModel, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)  # of a network with noise of its own
    images = _images(model, layout).requires_grad_()
    logits = draw(images)
    weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
    gradient = torch.zeros_like(images)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad((logits * weights).sum(), images)
    return logits.detach().float(), gradient.float()


def _trains(model: BankedModel) -> bool:
    """Run a copy of a bank in training mode, forward and backward; an exception says no."""
    bank = duplicate(model.banks[0])
    bank.train()
    to_layout(bank, torch.channels_last)
    logits = model.reading.logits(bank, model.normalize(_images(model, torch.channels_last)))
    if logits.requires_grad:
        logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
    return True


def _images(model: BankedModel, layout: torch.memory_format) -> Tensor:
    images = torch.rand(
        _IMAGES, *model.card.pixels.shape, generator=torch.Generator().manual_seed(0)
    )
    return in_layout(images.to(model.device), layout)
