"""Models: architectures, their partition into layers, and M banks of weights of one."""

from rlskit.models.architecture import Architecture, resolve
from rlskit.models.banks import BankedModel, Card, Classifier
from rlskit.models.listing import list_models
from rlskit.models.partition import GRANULARITIES, Layer, Partition

__all__ = [
    "GRANULARITIES",
    "Architecture",
    "BankedModel",
    "Card",
    "Classifier",
    "Layer",
    "Partition",
    "list_models",
    "resolve",
]
