"""Gaussian noise on the image alone (Cohen et al. 2019, arXiv 1902.02918), in training too.

Their answer is the vote of many noisy copies with a certificate; here it is the mean prediction.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from rlskit.defenses.defense import Perturb
from rlskit.defenses.perturbed import images_changed
from rlskit.defenses.variates import Variates
from rlskit.models.banks import BankedModel

SAMPLES = 50
SETTINGS = {"sigma": 0.25}
"""Standard deviation of the noise, in pixels of [0, 1]."""


def perturb(model: BankedModel) -> Perturb:
    """Return a context that adds noise to the images."""
    sigma, std = model.card.settings["sigma"], model.card.pixels.std

    def blurring(network: nn.Module, variates: Variates) -> AbstractContextManager[None]:
        def blur(images: Tensor) -> Tensor:
            noise = variates.normal(images.shape, images) / images.new_tensor(std).view(-1, 1, 1)
            return images + sigma * noise

        return images_changed(network, blur)

    return blurring
