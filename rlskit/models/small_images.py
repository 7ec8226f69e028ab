"""`--small-images`: stems and heads for images of 28 to 64 pixels.

As in the CIFAR literature: the first convolution is 3x3 with stride 1 and the max-pool after it is
dropped (He et al. 2016, section 4.2); VGG-16 ends in one linear layer on the pooled features.
"""

from __future__ import annotations

from torch import nn

from rlskit.errors import RequestError
from rlskit.models.stem import first_convolution

_STEM_POOLS = (
    "maxpool", "maxpool1", "maxpool_3a", "Pool1", "pool0", "stem.pool", "stem_pool",
    "features.pool0", "features.conv1_pool",
)  # fmt: skip


def adapt_to_small_images(network: nn.Module) -> None:
    """Change the stem of a convolutional network, and the head of a VGG, in place.

    Raises:
        RequestError: The network has no stem that could be made smaller.
    """
    if _is_vgg(network):
        _replace_vgg_head(network)
        return
    found = first_convolution(network)
    if found is None or found[1].groups != 1 or found[1].kernel_size == found[1].stride:
        raise RequestError(
            f"`small_images` knows convolutional stems and VGGs, not {type(network).__name__}; "
            "use `image_size`"
        )
    path, conv = found
    pools = [pool for pool in _STEM_POOLS if _has(network, pool)]
    if type(network).__name__ in ("AlexNet", "SqueezeNet"):
        pools = ["features.2"]  # they number their layers
    if conv.stride == (1, 1) and not pools:
        raise RequestError(
            f"`small_images` has nothing to change: {type(network).__name__} starts with stride 1"
        )
    _set(network, path, _small(conv))
    for pool in pools:
        _set(network, pool, nn.Identity())
    if "stem.pool" in pools and _has(network, "stem.pad"):
        network.stem.pad = nn.Identity()  # type: ignore[union-attr]  # BiT pads for its pool


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    small = nn.Conv2d(
        conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None,
        device=conv.weight.device,
    )  # fmt: skip
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    return small


def _is_vgg(network: nn.Module) -> bool:
    return type(network).__name__ == "VGG" and _has(network, "features")


def _replace_vgg_head(network: nn.Module) -> None:
    convolutions = [m for m in network.features.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    width, device = convolutions[-1].out_channels, convolutions[-1].weight.device
    classes = [m for m in network.modules() if isinstance(m, nn.Linear)][-1].out_features
    linear = nn.Linear(width, classes, device=device)
    pool = nn.AdaptiveAvgPool2d(1)
    if _has(network, "pre_logits"):  # timm
        network.pre_logits = nn.Identity()
        network.head = nn.Sequential(pool, nn.Flatten(), linear)
    else:  # torchvision flattens between the two
        network.avgpool = pool
        network.classifier = linear


def _has(network: nn.Module, path: str) -> bool:
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True


def _set(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
