"""Models and what is none, as somebody's own module has them."""

import torch
from torch import nn


class Grouped(nn.Module):
    """A depthwise convolution, layer norm over channels, squeeze and excitation, a convolution as head."""

    def __init__(self, wide: int, bands: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(bands, wide, 3, 2, 1), nn.BatchNorm2d(wide), nn.ReLU())
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide)
        self.point = nn.Conv2d(wide, wide, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 6, 1), nn.ReLU(), nn.Conv2d(6, wide, 1))
        self.norm = nn.LayerNorm(wide)
        self.classifier = nn.Linear(wide, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(torch.relu(self.depthwise(self.stem(x))))
        x = x * torch.sigmoid(self.gate(x))
        return self.classifier(self.norm(x.mean((2, 3))))


def small(wide: int, bands: int, classes: int) -> nn.Module:
    return Grouped(wide, bands, classes)


def no_module() -> dict:
    return {}


def broken() -> nn.Module:
    raise ValueError("no such\nvariant")
