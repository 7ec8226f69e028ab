"""Change how many channels a network's first convolution reads."""

from __future__ import annotations

import torch
from torch import nn

from rlskit.errors import RequestError


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the path and module of the first registered convolution.

    Raises:
        RequestError: There is none.
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    raise RequestError(f"{type(network).__name__} has no convolution to adapt")


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution read `channels` channels, in place.

    Its weights are carried over as timm does for its own models: one channel gets the sum over the
    former ones, more channels repeat them, scaled to the same total.

    Raises:
        RequestError: There is no such convolution, or it is grouped.
    """
    from timm.models import adapt_input_conv

    _, conv = first_convolution(network)
    if conv.in_channels == channels:
        return
    if conv.groups != 1:
        raise RequestError(f"--in-chans {channels}: the first convolution is grouped")
    with torch.no_grad():
        weight = adapt_input_conv(channels, conv.weight)
    conv.weight = nn.Parameter(weight)
    conv.in_channels = channels
