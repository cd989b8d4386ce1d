"""The routing plan: which tokens pass the heavy block, and with which gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mod_vision.routing.capacity import num_routed
from mod_vision.routing.gather import gather_tokens, scatter_tokens
from mod_vision.routing.rank import rank

GATE_RANGE = 0.2


def gate(scores: torch.Tensor) -> torch.Tensor:
    """Return the gates (B, k, 1) of tokens with router scores (B, k).

    g = 1 + 0.2 * tanh(score) is near identity, as in p-MoD (arXiv 2412.04449), so that a routed block starts as the
    dense block it stands for, and gives the router the task's gradient. A softmax over the selected tokens would scale
    each change by about 1/k.
    """
    return 1.0 + GATE_RANGE * torch.tanh(scores).unsqueeze(-1)


def apply_gates(tokens: torch.Tensor, changed: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
    """Return x + g * (f(x) - x) for routed tokens x and block outputs f(x), both (B, k, C).

    The residual is inside f, so it is counted once.
    """
    return changed if gates is None else torch.addcmul(tokens, gates.to(tokens.dtype), changed - tokens)


class RoutingPlan(NamedTuple):
    """What a router decided for one batch.

    Attributes:
        logits: (B, N) router scores.
        indices: (B, k) routed tokens, unique per image, in descending score or in raster order.
        gates: (B, k, 1) factor on the block's change of each routed token, or None for a router without parameters.
        size: (H, W) of the feature map, each pixel of which is a token: N = H * W.
        real: (B, k) False where an image that needs fewer than k tokens repeats its best one, None if none does. A
            repeated token must not be looked at by others; it comes out as its original does, so it can be scattered.
        inside: (B, N) False where a token is padding, which is routed after all others, None if that is not known.
    """

    logits: torch.Tensor
    indices: torch.Tensor
    gates: torch.Tensor | None
    size: tuple[int, int]
    real: torch.Tensor | None = None
    inside: torch.Tensor | None = None

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the routed ones (B, k, C) of tokens (B, N, C)."""
        return gather_tokens(tokens, self.indices)

    def put(self, base: torch.Tensor, taken: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """Return `base` with its routed tokens overwritten by x + g * (f(x) - x); all others are bit-identical.

        Args:
            base: (B, N, C), what skipped tokens get.
            taken: (B, k, C), routed tokens x, as `take` gave them.
            changed: (B, k, C), block outputs f(x).
        """
        return scatter_tokens(base, self.indices, apply_gates(taken, changed, self.gates))

    @property
    def mask(self) -> torch.Tensor | None:
        """Attention mask (B, 1, 1, k), True where a token may be looked at, or None if all may."""
        return None if self.real is None else self.real[:, None, None]

    @property
    def width(self) -> int:
        """Tokens that the batch computes of each image."""
        return self.indices.shape[1]

    @property
    def share(self) -> float:
        """Share of the tokens that the batch computes of each image."""
        return self.indices.shape[1] / self.logits.shape[1]

    def to_map(self, values: torch.Tensor) -> torch.Tensor:
        """View values of tokens (B, N) as a map (B, H, W)."""
        return values.view(-1, *self.size)

    def counts(self) -> torch.Tensor:
        """Return how many tokens each image routes, (B,)."""
        return (torch.ones_like(self.indices) if self.real is None else self.real).sum(dim=1)

    def kept(self) -> torch.Tensor:
        """Return the routed tokens as a boolean map (B, H, W)."""
        mask = torch.zeros_like(self.logits, dtype=torch.bool)
        return self.to_map(mask.scatter(1, self.indices, True))

    def passed(self, capacities: Sequence[float], blocks: int) -> torch.Tensor:
        """Return how many of a layer's `blocks` each token passed, (B, H, W).

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
    return RoutingPlan(logits, indices, gates, size, real, inside)
