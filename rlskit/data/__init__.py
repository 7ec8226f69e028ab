"""Data: real images in [0, 1] with labels, from arrays, folders and torchvision's data sets."""

from rlskit.data.batches import AUGMENTATIONS, batches, blocks, runs
from rlskit.data.classes import ClassNames, are_numbers, read_classes
from rlskit.data.dataset import Data, spread
from rlskit.data.in_memory import MEMORY, from_memory, memory_images, memory_labels
from rlskit.data.named import DATASETS, DataFacts, default_data_dir
from rlskit.data.sources import SPECS, count, describe, load

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "MEMORY",
    "SPECS",
    "ClassNames",
    "Data",
    "DataFacts",
    "are_numbers",
    "batches",
    "blocks",
    "count",
    "default_data_dir",
    "describe",
    "from_memory",
    "load",
    "memory_images",
    "memory_labels",
    "read_classes",
    "runs",
    "spread",
]
