"""The way around a block that has no residual of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.routing.plan import ceil_div
from mod_vision.routing.tiles import tile_means

COARSE = 4
RIDGE = 1e-2


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
        return tile_means(x, COARSE)

    def forward(self, coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return a map (B, c2, H / stride, W / stride), rounded up, for a pooled map of `size` (H, W)."""
        height, width = (ceil_div(side, self.stride) for side in size)
        fine = F.interpolate(self.conv(coarse), scale_factor=float(COARSE // self.stride), mode="nearest")
        return fine[:, :, :height, :width]

    @torch.no_grad()
    def fit(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the weights so that the output comes closest to y in least squares.

        A little ridge keeps them small where there are fewer pixels than channels.

        Args:
            x: (B, c1, H, W), what the block reads.
            y: (B, c2, H / stride, W / stride), what it gives.
        """
        wanted = tile_means(y, COARSE // self.stride)
        pixels, targets = (m.double().permute(0, 2, 3, 1).flatten(0, 2) for m in (self.pool(x), wanted))
        mean, level = pixels.mean(0), targets.mean(0)
        pixels = pixels - mean
        gram = pixels.T @ pixels
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
        weight = torch.linalg.solve(gram, pixels.T @ (targets - level)).T
        self.conv.weight.copy_(weight[:, :, None, None])
        assert self.conv.bias is not None
        self.conv.bias.copy_(level - weight @ mean)
