"""A network of depthwise-separable convolutions with ReLU (Howard et al., MobileNets, arXiv:1704.04861).

ReLU, and no residual sums: both keep every convolution in INT8 on every runtime.
"""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipelines.params import Section

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Width of the stem, and widths and depths of the stages; the stem and each stage halve the resolution."""

    stem: int = Field(ge=1, description="Channels of the first convolution.")
    widths: list[int] = Field(min_length=1, description="Channels of each stage.")
    depths: list[int] = Field(min_length=1, description="Separable convolutions of each stage.")

    @model_validator(mode="after")
    def _one_depth_per_width(self) -> "Options":
        if len(self.widths) != len(self.depths):
            raise ValueError(f"{len(self.widths)} widths but {len(self.depths)} depths; give one of each per stage")
        return self


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return the network: N x channels x H x W to logits N x classes."""
    import torch
    from torch import nn

    def convolution(wide_in: int, wide: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(wide_in, wide, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(wide), nn.ReLU()]

    class Separable(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            wide = options.stem
            layers = convolution(channels, wide, 3, 2, 1)
            for width, depth in zip(options.widths, options.depths, strict=True):
                for place in range(depth):
                    layers += convolution(wide, wide, 3, 1 if place else 2, wide)
                    layers += convolution(wide, width, 1, 1, 1)
                    wide = width
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x))

    return Separable()
