"""MoDStage: a stage of routed transformer blocks over a feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mod_vision.nn.attention import Rotation, TransformerBlock, rotary_table
from mod_vision.nn.skip import LinearSkip
from mod_vision.routing import RoutedLayer, num_routed, tokens_to_map

HEAD_DIM = 32


def default_heads(dim: int) -> int:
    """Return the largest number of heads of at least 32 channels that fits `dim` and the rotary embedding."""
    fitting = (h for h in range(max(1, dim // HEAD_DIM), 0, -1) if dim % (4 * h) == 0)
    return next(fitting, 1)


class MoDStage(RoutedLayer):
    """Transformer blocks over a feature map, one routing for the whole stage.

    A 1x1 convolution (if the channels change) and a depthwise 3x3 position term are dense and carry context between
    routed and skipped tokens. Then the routed tokens are gathered once, pass all blocks as a short sequence with the
    rotary embedding of their own grid positions, and are scattered back once; the skipped ones take a linear map. With
    capacities that fall over the depth, deeper blocks work on a prefix: the plan is in descending score, so that is a
    slice.

    Args:
        c1: Input channels.
        c2: Output channels.
        n: Number of blocks.
        capacity: Share of tokens in (0, 1], or a list of them over the depth.
        num_heads: Attention heads, by default one per 32 channels.
        router: Name of a router.
        where: Name of the layer in error messages.

    Raises:
        ValueError: If capacity or router is not valid, or the channels do not divide into heads.
    """

    takes_ragged = True

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        capacity: Any = 0.5,
        num_heads: int | None = None,
        router: str = "conv",
        where: str = "MoDStage",
    ) -> None:
        super().__init__()
        heads = default_heads(c2) if num_heads is None else num_heads
        if not isinstance(heads, int) or heads < 1 or c2 % (4 * heads):
            hint = "use a multiple of 4 channels" if c2 % 4 else f"try num_heads={default_heads(c2)}"
            raise ValueError(
                f"{where}: {c2} channels do not divide into {heads!r} heads of a multiple of 4 channels (the rotary "
                f"embedding needs 4), {hint}."
            )
        self.head_dim = c2 // heads
        self.proj = nn.Identity() if c1 == c2 else nn.Conv2d(c1, c2, 1)
        self.pos = nn.Conv2d(c2, c2, 3, padding=1, groups=c2)
        self.blocks = nn.ModuleList(TransformerBlock(c2, heads) for _ in range(n))
        self.skip = LinearSkip(c2)
        self.init_routing(c2, n, capacity, router, where, per_block=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, c2, H, W) for x (B, c1, H, W)."""
        tokens, size = self._tokens(x)
        rotation = rotary_table(size, self.head_dim, tokens)
        if self.dense:
            tokens = self._run(tokens, rotation, tokens.shape[1])
        else:
            plan = self.route(tokens, size)
            routed = plan.take(tokens)
            changed = self._run(routed, _pick(rotation, plan.indices), tokens.shape[1], plan.mask)
            tokens = plan.put(self.skip(tokens), routed, changed)
        return tokens_to_map(tokens, size)

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """Fit the linear map of the skipped tokens to the blocks, which were trained dense, on maps x (B, c1, H, W).

        Returns:
            What the dense stage gives for x.
        """
        tokens, size = self._tokens(x)
        wanted = tokens
        rotation = rotary_table(size, self.head_dim, tokens)
        for block in self.blocks:
            wanted = block(wanted, rotation)
        self.skip.fit(tokens, wanted)
        return tokens_to_map(wanted, size)

    def _tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return tokens (B, H * W, c2) after the dense part, and (H, W)."""
        x = self.proj(x)
        x = x + self.pos(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])

    def _run(
        self, tokens: torch.Tensor, rotation: Rotation, num_tokens: int, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the blocks, each on the prefix that its capacity leaves of `num_tokens`."""
        cos, sin = rotation
        for block, capacity in zip(self.blocks, self.capacities, strict=True):
            k = num_routed(num_tokens, capacity)
            if k >= tokens.shape[1] or capacity == self.capacities[0]:
                tokens = block(tokens, rotation, mask)
            else:
                prefix = block(tokens[:, :k], (cos[:, :k], sin[:, :k]))
                tokens = torch.cat((prefix, tokens[:, k:]), dim=1)
        return tokens


def _pick(rotation: Rotation, indices: torch.Tensor) -> Rotation:
    """Pick the rotations (B, k, head_dim / 2) of the tokens at `indices` (B, k)."""
    cos, sin = (t[0].index_select(0, indices.flatten()).view(*indices.shape, -1) for t in rotation)
    return cos, sin
