"""The way around a heavy block: what a skipped token or tile gets instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.routing.capacity import ceil_div
from mod_vision.routing.tiles import tile_means

COARSE = 4
RIDGE = 1e-2


class LinearSkip(nn.Module):
    """The residual and a linear map of it: what a skipped token gets instead of a stage of transformer blocks.

    A trained stage changes its tokens by several times their size, and a linear map explains nearly all of that. A
    token that rides the residual alone arrives where everything after the stage expects changed ones. The map starts at
    zero, so that a new stage starts with the residual.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # no random numbers are drawn, so that a seed gives the weights of the dense twin
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C)."""
        return tokens + F.linear(tokens, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, tokens: torch.Tensor, wanted: torch.Tensor) -> None:
        """Set the weights so that the output comes closest to `wanted` in least squares, both (B, N, C)."""
        weight, bias = ridge(tokens.flatten(0, 1), (wanted - tokens).flatten(0, 1))
        self.weight.copy_(weight)
        self.bias.copy_(bias)


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

        Args:
            x: (B, c1, H, W), what the block reads.
            y: (B, c2, H / stride, W / stride), what it gives.
        """
        wanted = tile_means(y, COARSE // self.stride)
        pixels, targets = (m.permute(0, 2, 3, 1).flatten(0, 2) for m in (self.pool(x), wanted))
        weight, bias = ridge(pixels, targets)
        self.conv.weight.copy_(weight[:, :, None, None])
        assert self.conv.bias is not None
        self.conv.bias.copy_(bias)


def ridge(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (c2, c1) and the bias (c2,) of the linear map that takes rows of x closest to those of y.

    A little ridge keeps them small where there are fewer rows than channels.

    Args:
        x: (M, c1).
        y: (M, c2).
    """
    x, y = x.double(), y.double()
    mean, level = x.mean(0), y.mean(0)
    centred = x - mean
    gram = centred.T @ centred
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, centred.T @ (y - level)).T
    return weight, level - weight @ mean
