"""Change how many channels a network's first convolution reads."""

from __future__ import annotations

from torch import nn

from rlskit.errors import RequestError


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the path and module of the first registered convolution, or None.

    A lazy one that has not seen images reads whatever comes.
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels:
            return path, module
    return None


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution read `channels` channels, in place.

    Its weights are carried over as timm does for its own models: one channel gets the sum over the
    former ones, several repeat them, scaled to the same total. A network without convolutions
    (one's own) is left as it is.

    Raises:
        RequestError: The convolution is grouped.
    """
    found = first_convolution(network)
    if found is None or found[1].in_channels == channels:
        return
    conv = found[1]
    if conv.groups != 1:
        raise RequestError(f"`in_chans` {channels}: the first convolution is grouped")
    before = conv.weight.detach()
    if channels == 1:
        weight = before.sum(1, keepdim=True)
    else:
        former = conv.in_channels
        weight = before[:, [c % former for c in range(channels)]] * (former / channels)
    conv.weight = nn.Parameter(weight)
    conv.in_channels = channels
