"""Noise: its distributions, its bounds, and what a sample depends on."""

import math

import pytest
import torch
from torch import Tensor, nn

from rlskit.attacks.noise import noise


class Untouchable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("noise knows nothing of the model")


def add(images: Tensor, eps: float, distribution: str, seed: int = 0) -> Tensor:
    labels = torch.zeros(len(images), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    return noise(
        Untouchable(), images, labels, eps=eps, distribution=distribution, generator=generator
    )


@pytest.mark.parametrize(
    ("distribution", "deviation", "beyond_half", "at_the_ends"),
    [
        ("uniform", math.sqrt(1 / 3), 0.5, 0.0),
        # erfc(sqrt 1/2) and erfc(sqrt 2); the variance of a Gaussian cut off at 2 sigma is 0.9205
        ("gaussian", 0.5 * math.sqrt(0.9205), 0.3173, 0.0455),
    ],
)
def test_distributions(
    distribution: str, deviation: float, beyond_half: float, at_the_ends: float
) -> None:
    eps = 2.0**-4  # exact, so that the ends are met exactly
    images = torch.full((4, 3, 100, 100), 0.5)
    images[:, 0, 0, 0] += torch.arange(4) / 64
    units = ((add(images, eps, distribution) - images) / eps).double()
    assert units.abs().max() <= 1
    assert units.mean().abs() < 0.01
    assert units.std().item() == pytest.approx(deviation, abs=0.01)
    assert (units.abs() > 0.5).double().mean().item() == pytest.approx(beyond_half, abs=0.01)
    assert (units.abs() == 1).double().mean().item() == pytest.approx(at_the_ends, abs=0.005)
    assert torch.corrcoef(units.flatten(1)).triu(1).abs().max() < 0.03, "images share no sample"


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_a_sample_depends_on_the_image_and_the_seed_alone(distribution: str) -> None:
    images = torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    outside = torch.get_rng_state()
    noisy = add(images, 0.1, distribution)
    assert torch.equal(add(images.flip(0), 0.1, distribution), noisy.flip(0))
    assert torch.equal(add(images[2:3], 0.1, distribution), noisy[2:3])
    assert not torch.equal(add(images, 0.1, distribution, seed=1), noisy)
    assert torch.equal(torch.get_rng_state(), outside)


def test_noise_stays_in_the_pixel_range_and_leaves_its_input() -> None:
    images = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    noisy = add(images, 1.0, "uniform")
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert (noisy[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.12)
    assert torch.equal(images[0], torch.zeros(3, 8, 8))
    assert torch.equal(add(images, 0.0, "gaussian"), images)
