"""A wrapper that routes any residual block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mod_vision.routing.layer import RoutedLayer


class Routed(RoutedLayer):
    """Route a residual block f over tokens (B, N, C): y_i = x_i + g_i (f(x_S)_i - x_i) for routed i, y_i = x_i else.

    Mixture-of-Depths, arXiv 2404.02258, eq. 1, with the residual kept inside the block.

    Args:
        block: Any module (B, k, C) -> (B, k, C) that contains its own residual.
        dim: Channels C.
        capacity: Share of tokens to route, in (0, 1].
        router: Name of a router.

    Raises:
        ValueError: If capacity or router is not valid.
    """

    def __init__(self, block: nn.Module, dim: int, capacity: Any = 0.5, router: str = "linear") -> None:
        super().__init__()
        self.block = block
        self.init_routing(dim, 1, capacity, router, where=f"Routed({type(block).__name__})")

    def forward(self, tokens: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return tokens (B, N, C) after the routed block; `size` is the (H, W) grid, by default a row of N."""
        if self.dense:
            return self.block(tokens)
        plan = self.route(tokens, size or (1, tokens.shape[1]))
        routed = plan.take(tokens)
        return plan.put(tokens, routed, self.block(routed))
