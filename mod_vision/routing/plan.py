"""The routing plan: which tokens pass the heavy block, and with which gate."""

from __future__ import annotations

from typing import NamedTuple

import torch

GATE_RANGE = 0.2


def gate(scores: torch.Tensor) -> torch.Tensor:
    """Return the gates (B, k, 1) of tokens with router scores (B, k).

    g = 1 + 0.2 * tanh(score) is near identity, as in p-MoD (arXiv 2412.04449), so that a routed block starts as the
    dense block it stands for, and gives the router the task's gradient. A softmax over the selected tokens would scale
    each change by about 1/k.
    """
    return 1.0 + GATE_RANGE * torch.tanh(scores).unsqueeze(-1)


class RoutingPlan(NamedTuple):
    """What a router decided for one batch.

    Attributes:
        logits: (B, N) router scores.
        indices: (B, k) routed tokens, unique per image, in descending score or in raster order.
        gates: (B, k, 1) factor on the block's change of each routed token, or None for a router without parameters.
        size: (H, W) of the token grid, N = H * W.
    """

    logits: torch.Tensor
    indices: torch.Tensor
    gates: torch.Tensor | None
    size: tuple[int, int]

    def kept(self) -> torch.Tensor:
        """Return the routed tokens as a boolean map (B, H, W)."""
        mask = torch.zeros_like(self.logits, dtype=torch.bool)
        return mask.scatter(1, self.indices, True).view(-1, *self.size)


def make_plan(
    logits: torch.Tensor, k: int, size: tuple[int, int], gated: bool = True, raster: bool = False
) -> RoutingPlan:
    """Select the k tokens with the highest score in each image (expert choice, arXiv 2404.02258, section 3.3).

    Args:
        logits: (B, N) router scores.
        k: Number of tokens to route per image, at most N.
        size: (H, W) of the token grid.
        gated: False for routers without parameters, which need no gradient.
        raster: Order the selected tokens by position instead of by descending score.
    """
    scores, indices = logits.topk(k, dim=1)
    if raster:
        indices = indices.sort(dim=1).values
        scores = logits.gather(1, indices)
    return RoutingPlan(logits, indices, gate(scores) if gated else None, size)
