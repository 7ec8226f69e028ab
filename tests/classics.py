"""Classic networks as people write them, made narrow: one list, which goes through everything.

All take images `[B, in_chans, 32, 32]`, normalised, and answer with logits `[B, num_classes]`.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type"

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


class LeNet(nn.Module):
    """As in every tutorial: `.view` after a convolution."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_chans, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2 = nn.Linear(200, 32), nn.Linear(32, 16)
        self.fc3 = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.fc3(x)


class SmallCNN(nn.Module):
    """As in TRADES (Zhang et al. 2019): named parts, dropout, `.view`."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential()
        widths = [in_chans, 4, 4, 8, 8]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            self.features.add_module(f"conv{i}", nn.Conv2d(before, after, 3))
            self.features.add_module(f"relu{i}", nn.ReLU())
            if i % 2:
                self.features.add_module(f"pool{i}", nn.MaxPool2d(2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(200, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).view(-1, 200))


class AllCNN(nn.Module):
    """Springenberg et al. 2015: convolutions alone, a mean at the end."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(0.2), nn.Conv2d(in_chans, 6, 3, padding=1), nn.ReLU(True),
            nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(True), nn.Dropout(0.5),
            nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(True), nn.Conv2d(8, num_classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((-2, -1))


class PreActBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreActResNet18(nn.Module):
    """He et al. 2016b for CIFAR: two blocks in each of four stages."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, width: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(PreActBlock(before, after, 1 + (i > 0)), PreActBlock(after, after, 1))
            for i, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for stage in self.stages:
            out = stage(out)
        out = F.avg_pool2d(out, 4)
        return self.linear(out.view(out.size(0), -1))


class WideBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, drop: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.drop, self.equal = drop, before == after
        self.short = None if self.equal else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.equal:
            x = F.relu(self.bn1(x))
        else:
            out = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(out if self.equal else x)))
        out = self.conv2(F.dropout(out, self.drop, training=self.training))
        return torch.add(x if self.short is None else self.short(x), out)


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016: depth 28 and widen 10 are the WideResNet-28-10."""

    def __init__(self, num_classes: int, in_chans: int, depth: int, widen: int) -> None:
        super().__init__()
        widths = [4, 4 * widen, 8 * widen, 16 * widen]
        n = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        blocks = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            blocks += [
                WideBlock(after if j else before, after, 2 if i and not j else 1, 0.3)
                for j in range(n)
            ]
        self.blocks = nn.Sequential(*blocks)
        self.bn1, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)
        self.channels = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.blocks(self.conv1(x))))
        out = F.avg_pool2d(out, 8)
        return self.fc(out.view(-1, self.channels))


def wide_resnet(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """WideResNet-28-10's class, of depth 10 and width 1."""
    return WideResNet(num_classes, in_chans, depth=10, widen=1)


class Dense(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([out, x], 1)


class DenseNetBC(nn.Module):
    """Huang et al. 2017: bottlenecks, and transitions that halve channels and size."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, growth: int = 2) -> None:
        super().__init__()
        width = 2 * growth
        self.conv = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for stage in range(3):
            for _ in range(2):
                layers.append(Dense(width, growth))
                width += growth
            if stage < 2:
                half = width // 2
                layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, half, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                width = half
        self.dense, self.bn = nn.Sequential(*layers), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.dense(self.conv(x))))
        return self.fc(torch.squeeze(F.adaptive_avg_pool2d(out, 1)))  # a lone image has no batch


class VGG(nn.Module):
    """As for CIFAR: `features` and `classifier`."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_chans
        for width in (4, "M", 6, "M", 8, 8, "M", 8, "M", 8, "M"):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                before = width
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return self.classifier(out.view(out.size(0), -1))


def mlp(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """No convolution at all."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(1024 * in_chans, 16), nn.ReLU(), nn.Linear(16, num_classes)
    )


class RowLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32 * in_chans, 12, num_layers=2, batch_first=True)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 1, 3).flatten(2)
        h0 = torch.zeros(2, x.size(0), 12, device=x.device)
        out, _ = self.lstm(rows, (h0, torch.zeros_like(h0)))
        return self.fc(out[:, -1, :])


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021 from scratch: patches of 8, a class token, learned positions."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_chans, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(ViTBlock(width, 2), ViTBlock(width, 2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(b, -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class TwoBranches(nn.Module):
    """A fine and a coarse look at the same image, put side by side."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(in_chans, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(in_chans, 4, 7, 4), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.fine(x).amax((2, 3)), self.coarse(x).mean((2, 3))], 1))


class Volume(nn.Module):
    """Treats its channels as a depth: weights of five dimensions."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(in_chans, 4, 3, 2), nn.Conv3d(1, 2, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(self.stem(x).relu().unsqueeze(1)).relu()
        return self.fc(out.mean((3, 4)).flatten(1))


class Careful(nn.Module):
    """Looks at values, keeps what a hook saw, and divides by a norm of its weights."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_chans, 4, 5, 2), nn.Linear(4, num_classes)
        self.seen: dict[str, Tensor] = {}
        self.conv.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.seen["conv"] = output

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.isnan(x).any()
        if x.abs().max() > 1000:
            x = x / 255
        self.conv(x)
        return self.fc(self.seen["conv"].relu().mean((2, 3))) / max(self.fc.weight.norm().item(), 1)


def plain(num_classes: int, in_chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, num_classes),
    )  # fmt: skip


def old_weight_norm(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    nn.utils.weight_norm(net[0])
    nn.utils.weight_norm(net[5], dim=None)
    return net


def weight_norm(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    parametrizations.weight_norm(net[0])
    parametrizations.weight_norm(net[7])
    return net


def old_spectral_norm(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    nn.utils.spectral_norm(net[0])
    nn.utils.spectral_norm(net[7])
    return net


def spectral_norm(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    parametrizations.spectral_norm(net[0])
    return net


def orthogonal(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    parametrizations.orthogonal(net[5])
    return net


def pruned(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.ln_structured(net[5], "weight", 0.25, n=2, dim=0)
    return net


def lazy(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3, 2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
        nn.LazyLinear(num_classes),
    )  # fmt: skip


def parallel(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return nn.DataParallel(plain(num_classes, in_chans))


def frozen_stem(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    net = plain(num_classes, in_chans)
    net[0].requires_grad_(False)
    return net


CLASSICS = (
    "LeNet", "SmallCNN", "AllCNN", "PreActResNet18", "wide_resnet", "DenseNetBC", "VGG", "mlp",
    "RowLSTM", "ViT", "TwoBranches", "Volume", "Careful", "old_weight_norm", "weight_norm",
    "old_spectral_norm", "spectral_norm", "orthogonal", "pruned", "lazy", "parallel", "frozen_stem",
)  # fmt: skip
"""The factories of this file."""
