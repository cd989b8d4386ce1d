"""The way around a block that has no residual of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

COARSE = 4


class CoarseSkip(nn.Module):
    """A 1x1 convolution at a quarter of the resolution: what a skipped tile gets instead of a whole block.

    A block that changes the channels has no residual to ride past it. This stands in for one, at 1/16 of the cost of a
    1x1 convolution on the map: each 4x4 of its pixels gets one value. It is linear, so that it can be fitted to a
    trained block in closed form.

    Args:
        c1: Input channels.
        c2: Output channels.
        stride: Stride of the block, 1, 2 or 4.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(c1, c2, 1)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map (B, c1, H, W) at a quarter of its resolution, rounded up."""
        return F.avg_pool2d(x, COARSE, ceil_mode=True, count_include_pad=False)

    def forward(self, coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return a map (B, c2, H / stride, W / stride), rounded up, for a pooled map of `size` (H, W)."""
        height, width = (-(-side // self.stride) for side in size)
        fine = F.interpolate(self.conv(coarse), scale_factor=float(COARSE // self.stride), mode="nearest")
        return fine[:, :, :height, :width]
