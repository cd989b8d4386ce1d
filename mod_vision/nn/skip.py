"""The bypass of a heavy block: what a skipped token gets instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

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
        # no random numbers are drawn, so that a seed gives the weights of the dense baseline
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
