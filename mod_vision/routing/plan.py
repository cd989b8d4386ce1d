"""The routing plan: which tokens pass the heavy block, and with which gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mod_vision.routing.capacity import ceil_div, num_routed
from mod_vision.routing.rank import rank

GATE_RANGE = 0.2


def gate(scores: torch.Tensor) -> torch.Tensor:
    """Return the gates (B, k, 1) of tokens with router scores (B, k).

    g = 1 + 0.2 * tanh(score) is near identity, as in p-MoD (arXiv 2412.04449), so that a routed block starts as the
    dense block it stands for, and gives the router the task's gradient. A softmax over the selected tokens would scale
    each change by about 1/k.
    """
    return 1.0 + GATE_RANGE * torch.tanh(scores).unsqueeze(-1)


def token_grid(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Return rows and columns of tokens on a map of `size` (H, W), each a square of `tile` pixels."""
    return ceil_div(size[0], tile), ceil_div(size[1], tile)


class RoutingPlan(NamedTuple):
    """What a router decided for one batch.

    Attributes:
        logits: (B, N) router scores.
        indices: (B, k) routed tokens, unique per image, in descending score or in raster order.
        gates: (B, k, 1) factor on the block's change of each routed token, or None for a router without parameters.
        size: (H, W) of the feature map.
        tile: Side of a token in pixels of the map: 1 where each pixel is a token, so that N = H * W.
        real: (B, k) False where an image that needs fewer than k tokens repeats its best one, None if none does. A
            repeated token must not be looked at by others; it comes out as its original does, so it can be scattered.
        whole: Whether tokens divide the map, so that none reaches beyond it.
        inside: (B, N) False where a token is padding, which is routed after all others, None if that is not known.
    """

    logits: torch.Tensor
    indices: torch.Tensor
    gates: torch.Tensor | None
    size: tuple[int, int]
    tile: int = 1
    real: torch.Tensor | None = None
    whole: bool = True
    inside: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor | None:
        """Attention mask (B, 1, 1, k), True where a token may be looked at, or None if all may."""
        return None if self.real is None else self.real[:, None, None]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens; their product is N. Tiles of the last ones can reach beyond the map."""
        return token_grid(self.size, self.tile)

    def to_map(self, values: torch.Tensor) -> torch.Tensor:
        """Spread values of tokens (B, N) over the feature map, (B, H, W)."""
        values = values.view(-1, *self.grid)
        if self.tile > 1:
            values = values.repeat_interleave(self.tile, dim=1).repeat_interleave(self.tile, dim=2)
        return values[:, : self.size[0], : self.size[1]]

    def touched(self, marks: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, N) that hold a marked pixel of the feature map (B, H, W): the largest mark of each."""
        if self.tile > 1:
            marks = F.max_pool2d(marks[:, None], self.tile, ceil_mode=True)
        return marks.flatten(1)

    def counts(self) -> torch.Tensor:
        """Return how many tokens each image routes, (B,)."""
        return (torch.ones_like(self.indices) if self.real is None else self.real).sum(dim=1)

    def kept(self) -> torch.Tensor:
        """Return the routed pixels of the feature map as a boolean map (B, H, W)."""
        mask = torch.zeros_like(self.logits, dtype=torch.bool)
        return self.to_map(mask.scatter(1, self.indices, True))

    def passed(self, capacities: Sequence[float], blocks: int) -> torch.Tensor:
        """Return how many of a layer's `blocks` each pixel of the feature map passed, (B, H, W).

        With a capacity per block, the tokens are in descending score, and a later block takes a prefix of them.
        """
        if len(set(capacities)) == 1:
            return self.kept() * blocks
        rank = torch.arange(self.indices.shape[1], device=self.indices.device)
        steps = [rank < num_routed(self.logits.shape[1], c) for c in capacities]
        passed = torch.stack(steps).sum(dim=0)
        counts = torch.zeros_like(self.logits, dtype=torch.long)
        return self.to_map(counts.scatter(1, self.indices, passed.expand_as(self.indices)))


def make_plan(
    logits: torch.Tensor,
    k: int,
    size: tuple[int, int],
    gated: bool = True,
    raster: bool = False,
    tile: int = 1,
    counts: torch.Tensor | None = None,
    inside: torch.Tensor | None = None,
) -> RoutingPlan:
    """Select the k tokens with the highest score in each image (expert choice, arXiv 2404.02258, section 3.3).

    Scores are compared to about three digits, equal ones by position, see `rank`.

    Args:
        logits: (B, N) router scores.
        k: Number of tokens to route per image, at most N.
        size: (H, W) of the feature map.
        gated: False for routers without parameters, which need no gradient.
        raster: Order the selected tokens by position instead of by descending score.
        tile: Side of a token in pixels of the map.
        counts: (B,) tokens that each image needs, at most k, or None if all need k.
        inside: (B, N) False where a token is padding, None if that is not known.
    """
    indices = rank(logits, inside).topk(k, dim=1).indices
    real = None
    if counts is not None and len(counts) > 1:
        real = torch.arange(k, device=logits.device) < counts[:, None]
        indices = torch.where(real, indices, indices[:, :1])
    if raster:
        indices, order = indices.sort(dim=1)
        real = None if real is None else real.gather(1, order)
    gates = gate(logits.gather(1, indices)) if gated else None
    whole = size[0] % tile == 0 and size[1] % tile == 0
    return RoutingPlan(logits, indices, gates, size, tile, real, whole, inside)
