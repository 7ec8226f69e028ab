"""The CIFAR ResNets of the tests are the ones that the published weights belong to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cifar_resnet import CifarResNet, resnet20, resnet44

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

needs_shared = pytest.mark.skipif(
    not (SHARED / "checkpoints").is_dir(), reason=f"no published weights: {SHARED} is absent"
)


def load_published(model: CifarResNet, name: str) -> CifarResNet:
    """Load weights whose names must be the model's, but for the counters that the files lack."""
    weights = load_file(SHARED / "checkpoints" / f"cifar10-{name}.safetensors")
    counters = {key for key in model.state_dict() if key.endswith(".num_batches_tracked")}
    assert set(weights) == set(model.state_dict()) - counters
    model.load_state_dict(weights)  # strict, but BatchNorm forgives files without counters
    return model.eval()


def read_test_images() -> tuple[Tensor, Tensor]:
    """Return the normalised test images and their labels: classes are folders sorted by name."""
    paths = sorted((SHARED / "data" / "cifar10-subset" / "test").glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return normalised, torch.tensor([classes.index(path.parent.name) for path in paths])


@pytest.mark.parametrize(("factory", "parameters"), [(resnet20, 0.27e6), (resnet44, 0.66e6)])
def test_parameters_match_the_paper(factory: Callable[[], CifarResNet], parameters: float) -> None:
    count = sum(parameter.numel() for parameter in factory().parameters())
    assert count == pytest.approx(parameters, abs=0.005e6)  # He et al., table 6


def test_num_classes_sets_the_head() -> None:
    assert resnet20(num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@needs_shared
def test_published_resnet20_gets_776_of_846_right() -> None:
    images, labels = read_test_images()
    assert len(labels) == 846
    assert count_right(load_published(resnet20(), "resnet20"), images, labels) == 776


@needs_shared
def test_published_resnet44_fits_too() -> None:
    images, labels = (tensor[::3] for tensor in read_test_images())  # of all 846: 793, measured
    assert len(labels) == 282
    assert count_right(load_published(resnet44(), "resnet44"), images, labels) == 260


def count_right(model: CifarResNet, images: Tensor, labels: Tensor) -> int:
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in images.chunk(6)])
    return int((predicted == labels).sum())
