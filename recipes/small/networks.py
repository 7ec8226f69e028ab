"""Networks of one's own for recipes: timm has none so small that two CPU cores can train many."""

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


class Block(nn.Module):
    """Two 3x3 convolutions with their BatchNorms, of which the first halves the image."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, width, H / 2, W / 2]`, rounded up."""
        found = self.relu(self.norm1(self.conv1(images)))
        activations: Tensor = self.relu(self.norm2(self.conv2(found)))
        return activations


class TwoBlocks(nn.Module):
    """Two blocks and a linear head, 32,154 parameters for MNIST: seconds of adversarial training.

    Images `[B, in_chans, 28, 28]`, normalised, to logits `[B, num_classes]`.
    """

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(in_chans, 16), Block(16, 32))
        self.head = nn.Linear(32 * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.blocks(images).flatten(1))
        return logits


def two_blocks(*, num_classes: int = 10, in_chans: int = 1) -> TwoBlocks:
    """Return a network of two blocks for images of 28 pixels."""
    return TwoBlocks(num_classes, in_chans)
