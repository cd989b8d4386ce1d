"""The way around a block that has no residual of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CoarseSkip(nn.Module):
    """A 1x1 convolution at half resolution: what a skipped tile gets instead of a whole block.

    A block that changes the channels has no residual to ride past it. This stands in for one, at a quarter of the cost
    of a 1x1 convolution on the map. It is linear, so that it can be fitted to a trained block in closed form.

    Args:
        c1: Input channels.
        c2: Output channels.
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map (B, c2, H, W) for x (B, c1, H, W), constant within 2x2 pixels."""
        coarse = self.conv(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))
        return F.interpolate(coarse, scale_factor=2.0, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]
