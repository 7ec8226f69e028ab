"""What timm and torchvision publish of a model: its weights, and the images they expect."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from rlskit.errors import RequestError
from rlskit.models.architecture import Architecture
from rlskit.models.trace import tensor_names
from rlskit.torchvision_ops import declare_missing_operators

_IMAGENET: dict[str, Any] = {
    "channels": 3, "height": 224, "width": 224, "classes": 1000,
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
"""Models of torchvision whose weights want images normalised once more (`transform_input`)."""


def library_pixels(architecture: Architecture) -> dict[str, Any]:
    """Return what the library says of its images: channels, height, width, mean, std, classes."""
    declare_missing_operators()
    if architecture.source == "timm":
        import timm

        config = timm.get_pretrained_cfg(architecture.name, allow_unregistered=False)
        if config is None:
            return dict(_IMAGENET)
        channels, height, width = config.input_size
        return {
            "channels": channels, "height": height, "width": width,
            "mean": tuple(config.mean), "std": tuple(config.std), "classes": config.num_classes,
        }  # fmt: skip
    weights = _torchvision_weights(architecture.name)
    transforms, side = weights.transforms(), weights.transforms().crop_size[0]
    return {
        "channels": 3, "height": side, "width": side, "mean": tuple(transforms.mean),
        "std": tuple(transforms.std), "classes": len(weights.meta["categories"]),
    }  # fmt: skip


def library_classes(classes: int) -> tuple[str, ...]:
    """Return the WordNet names of ImageNet's 1000 classes in the libraries' order; else nothing."""
    if classes != _IMAGENET["classes"]:
        return ()
    declare_missing_operators()
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def load_torchvision_weights(network: nn.Module, name: str) -> None:
    """Copy torchvision's weights into one of its networks; another number of classes keeps its own.

    torchvision refuses another head together with weights, so they are taken from a network that
    it builds itself, which also translates the names in old files.

    Raises:
        RequestError: A tensor besides the heads has another shape.
        OSError: The weights cannot be downloaded.
    """
    import torchvision

    donor = torchvision.models.get_model(
        name, weights=_torchvision_weights(name), progress=sys.stderr.isatty()
    )
    given = tensor_names(donor)
    with torch.no_grad():
        for tensor_name, tensor in tensor_names(network).items():
            if tensor_name.startswith("aux") and tensor_name not in given:
                continue  # GoogLeNet's auxiliary heads were not published
            source = given[tensor_name]
            if source.shape == tensor.shape:
                tensor.copy_(source)
            elif source.shape[1:] != tensor.shape[1:]:
                raise RequestError(
                    f"torchvision's weights of {name} do not fit: {tensor_name} is "
                    f"{list(source.shape)}, not {list(tensor.shape)}; leave `image_size` out"
                )


def _torchvision_weights(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT
