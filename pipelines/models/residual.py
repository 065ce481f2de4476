"""A residual network of basic blocks (He et al., Deep Residual Learning for Image Recognition, CVPR 2016)."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipelines.params import Section

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Widths and depths of the stages; each stage after the first halves the resolution, as does the stem."""

    widths: list[int] = Field(min_length=1, description="Channels of each stage.")
    depths: list[int] = Field(min_length=1, description="Blocks of each stage.")

    @model_validator(mode="after")
    def _one_depth_per_width(self) -> "Options":
        if len(self.widths) != len(self.depths):
            raise ValueError(f"{len(self.widths)} widths but {len(self.depths)} depths; give one of each per stage")
        return self


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return the network: N x channels x H x W to logits N x classes."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, wide_in: int, wide: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(wide)
            self.second = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(wide)
            self.shortcut: nn.Module = nn.Identity()
            if stride > 1 or wide_in != wide:
                self.shortcut = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norm1(self.first(x)))
            return torch.relu(self.norm2(self.second(y)) + self.shortcut(x))

    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            wide = options.widths[0]
            layers: list[nn.Module] = [
                nn.Conv2d(channels, wide, 3, 2, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
            for stage, (width, depth) in enumerate(zip(options.widths, options.depths, strict=True)):
                for place in range(depth):
                    layers.append(Block(wide, width, 2 if stage and not place else 1))
                    wide = width
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x))

    return Residual()
