"""A feature pyramid from the one map of a plain backbone."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import nn


class SimplePyramid(nn.Module):
    """Simple feature pyramid of ViTDet (arXiv 2203.16527, section 3): every level comes from the last map alone.

    Args:
        dim: Channels of the map.
        channels: Channels of each level.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.resize = nn.ModuleList([nn.ConvTranspose2d(dim, dim // 2, 2, 2), nn.Identity(), nn.MaxPool2d(2)])
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for width in (dim // 2, dim, dim)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return P3, P4 and P5 for x (B, dim, H, W), each `channels` wide, of 2H x 2W, H x W and H/2 x W/2."""
        return [level(resize(x)) for resize, level in zip(self.resize, self.levels, strict=True)]
