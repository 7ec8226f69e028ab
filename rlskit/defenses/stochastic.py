"""Any network with randomness of its own: a draw is the network under one stream of random numbers.

The stream feeds every source that a forward pass may use: torch's generators, `random`,
`numpy.random`, and the generators among the network's attributes. Each image is answered as if it
came alone, with the stream from its start, so that noise, masks and choices are those of the draw
and not of an image's place in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.models.banks import BankedModel, Classifier
from rlskit.models.streams import sources_of, streamed

SAMPLES = 10

_TRIED = 3
"""Images on which answering a batch at once is compared with answering one by one."""

_AGREEMENT = 1e-4
"""Largest difference of a logit between the two, as a share of the largest: above any rounding."""


class StochasticDraw(nn.Module):
    """A draw: a network with randomness of its own, under one stream, in whatever mode.

    A batch is answered at once by `torch.vmap`, which runs the network once and gives each image
    the same random numbers. Where the network does not allow that, as where it branches on an
    image's values, or where it answers otherwise so, its images are answered one by one, which on
    small images costs several times as much.

    Args:
        classifier: The network with its first step.
        seed: Decides the stream.
        ways: How the model's draws answer a batch, once one has tried it; shared by all of them.
    """

    is_observable = False
    """It depends on more than its tensors and its images; `rlskit.models.sharing` asks."""

    def __init__(self, classifier: Classifier, seed: int, ways: dict[str, bool]) -> None:
        super().__init__()
        self.classifier = classifier
        self._seed = seed
        self._ways = ways
        self._sources = sources_of(classifier.network)
        self.eval()

    def train(self, mode: bool = True) -> StochasticDraw:  # noqa: ARG002
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[B, classes]`."""
        if len(images) > 1 and "at once" not in self._ways:
            self._ways["at once"] = self._agrees(images[:_TRIED].detach())
        if len(images) > 1 and self._ways["at once"]:
            return self._at_once(images)
        return torch.cat([self._alone(image) for image in torch.split(images, 1)])

    def _alone(self, image: Tensor) -> Tensor:
        with streamed(self._sources, self._seed):
            logits: Tensor = self.classifier(image)
        return logits

    def _at_once(self, images: Tensor) -> Tensor:
        with streamed(self._sources, self._seed):
            logits: Tensor = torch.vmap(
                lambda image: self.classifier(image[None])[0], randomness="same"
            )(images)
        return logits

    @torch.no_grad()
    def _agrees(self, images: Tensor) -> bool:
        """Say whether a batch at once is answered as its images are one by one."""
        wanted = torch.cat([self._alone(image) for image in torch.split(images, 1)])
        try:
            found = self._at_once(images)
        except Exception:  # whatever vmap raises on a network that is not for it
            return False
        atol = _AGREEMENT * float(wanted.abs().max())
        return torch.allclose(found, wanted, rtol=0, atol=atol, equal_nan=True)


def draw(model: BankedModel, classifier: Classifier, seed: int) -> nn.Module:
    """Return the draw that a seed decides; the model remembers how its draws answer a batch."""
    return StochasticDraw(classifier, seed, model.batching)
