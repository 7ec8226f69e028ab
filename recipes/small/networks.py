"""Networks of one's own for the small recipes: timm has no VGG that two CPU cores can train."""

from __future__ import annotations

from torch import Tensor, nn


class SmallVGG(nn.Module):
    """VGG at a quarter of its width: 3x3 convolutions in three stages, one linear layer as head.

    Images `[B, in_chans, H, W]`, normalised, to logits `[B, num_classes]`.
    """

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        widths = ((16, 16), (32, 32), (64, 64, 64))
        layers: list[nn.Module] = []
        channels = in_chans
        for stage in widths:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.pool(self.features(images)).flatten(1))
        return logits


def vgg(*, num_classes: int = 10, in_chans: int = 3) -> SmallVGG:
    """Return a small VGG with 7 convolutions."""
    return SmallVGG(num_classes, in_chans)
