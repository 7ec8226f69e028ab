"""The ResNets for CIFAR of He et al. 2016, section 4.2: 6n + 2 layers, 16-32-64 channels.

Their shortcuts have no parameters (option A): a stage that halves the image keeps every second
pixel of its input and pads the missing channels with zeros. Submodules carry the names of the
weights in `shared/checkpoints`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.missing = stride, out_channels - in_channels

    def forward(self, images: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(images)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.shortcut(images))

    def shortcut(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        before = self.missing // 2  # the paper leaves open where; the published weights want both
        return F.pad(kept, (0, 0, 0, 0, before, self.missing - before))


class CifarResNet(nn.Module):
    """Images `[B, 3, H, W]`, normalised, to logits `[B, num_classes]`; 3 stages of `n` blocks."""

    def __init__(self, n: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, n, stride=1)
        self.layer2 = stage(16, 32, n, stride=2)
        self.layer3 = stage(32, 64, n, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def stage(in_channels: int, out_channels: int, n: int, stride: int) -> nn.Sequential:
    """Return `n` blocks, of which the first changes the number of channels and the size."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(n - 1)))


def resnet20(*, num_classes: int = 10) -> CifarResNet:
    return CifarResNet(n=3, num_classes=num_classes)


def resnet44(*, num_classes: int = 10) -> CifarResNet:
    return CifarResNet(n=7, num_classes=num_classes)
