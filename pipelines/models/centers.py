"""A small detector of our own: objects are peaks of a map, and no step after it suppresses overlapping boxes.

A convolutional backbone, a top-down path to one map of `stride` pixels a cell, and two towers that give class scores
and log distances to the four sides (Zhou et al., Objects as Points, arXiv:1904.07850, with the boxes of Liu et al.,
TTFNet, AAAI 2020). Convolution, batch normalization, ReLU, nearest upsampling and concatenation alone, no residual
sums: all of it stays in INT8 on every runtime. What reads the maps is `tasks/detection/decode.py`.
"""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipelines.params import Section

if TYPE_CHECKING:
    from torch import nn

RARE = 0.01  # the score of every cell before training, so that the many empty cells do not drown the rest


class Options(Section):
    """Widths and depths of the backbone; the stem and each stage halve the resolution."""

    stem: int = Field(ge=1, description="Channels of the first convolution.")
    widths: list[int] = Field(min_length=1, description="Channels of each stage.")
    depths: list[int] = Field(min_length=1, description="Blocks of each stage.")
    separable: bool = Field(description="Depthwise and pointwise convolutions in place of full ones.")
    neck: int = Field(ge=1, description="Channels of the map from which objects are read.")
    stride: int = Field(description="Pixels of the input per cell of that map: 4, 8, ..., at most 2 ** (stages + 1).")

    @model_validator(mode="after")
    def _fits(self) -> "Options":
        if len(self.widths) != len(self.depths):
            raise ValueError(f"{len(self.widths)} widths but {len(self.depths)} depths; give one of each per stage")
        strides = [2 ** (n + 2) for n in range(len(self.widths))]
        if self.stride not in strides:
            raise ValueError(f"stride {self.stride} is that of no stage; these are {', '.join(map(str, strides))}")
        return self


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return the network: N x channels x H x W to logits N x classes x h x w and log distances N x 4 x h x w.

    H and W must be multiples of the deepest stage's stride; h and w are H and W over `options.stride`.
    """
    import math

    import torch
    from torch import nn

    def convolution(wide_in: int, wide: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(wide_in, wide, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(wide), nn.ReLU()]

    def block(wide_in: int, wide: int, stride: int = 1) -> nn.Sequential:
        if not options.separable:
            return nn.Sequential(*convolution(wide_in, wide, 3, stride))
        return nn.Sequential(*convolution(wide_in, wide_in, 3, stride, wide_in), *convolution(wide_in, wide, 1))

    class Features(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(*convolution(channels, options.stem, 3, 2))
            wide, stages = options.stem, []
            for width, depth in zip(options.widths, options.depths, strict=True):
                stages.append(
                    nn.Sequential(*(block(wide if not n else width, width, 1 if n else 2) for n in range(depth)))
                )
                wide = width
            self.stages = nn.ModuleList(stages)
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
            self.first = int(math.log2(options.stride)) - 2  # the stage whose resolution the map has
            self.down = nn.Sequential(*convolution(wide, options.neck, 1))
            joins = [
                nn.Sequential(*convolution(options.neck + width, options.neck, 1), block(options.neck, options.neck))
                for width in options.widths[self.first : -1][::-1]
            ]
            self.joins = nn.ModuleList(joins)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, sides = self.stem(x), []
            for stage in self.stages:
                x = stage(x)
                sides.append(x)
            x = self.down(x)
            for join, side in zip(self.joins, sides[self.first : -1][::-1], strict=True):
                x = join(torch.cat([self.up(x), side], 1))
            return x

    class Head(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Conv2d(options.neck, classes, 1)
            self.boxes = nn.Conv2d(options.neck, 4, 1)
            nn.init.normal_(self.scores.weight, std=0.01)
            nn.init.constant_(self.scores.bias, math.log(RARE / (1 - RARE)))

        def forward(self, seen: torch.Tensor, measured: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.scores(seen), self.boxes(measured)

    class Centers(nn.Module):  # type: ignore[misc]
        outputs = ("scores", "boxes")

        def __init__(self) -> None:
            super().__init__()
            self.features = Features()
            self.towers = nn.ModuleList(block(options.neck, options.neck) for _ in range(2))
            self.head = Head()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.features(x)
            seen, measured = (tower(x) for tower in self.towers)
            scores, boxes = self.head(seen, measured)
            return scores, boxes

    return Centers()
