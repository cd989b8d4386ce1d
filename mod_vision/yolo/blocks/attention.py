"""Routed forms of Ultralytics' attention blocks: fewer tokens pass attention and MLP.

The 1x1 convolutions around them stay dense. The depthwise position term inside the
attention reads a map, so the values of the routed tokens are put back on the grid for it, with zeros elsewhere, as
padding does at the border.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules.block import C2PSA, A2C2f, AAttn, ABlock, Attention, PSABlock
from ultralytics.nn.modules.transformer import AIFI, TransformerEncoderLayer

from mod_vision.routing import RoutingPlan, scatter_tokens, tokens_to_map
from mod_vision.routing.capacity import ceil_div
from mod_vision.yolo.blocks.base import RoutedBlock, to_tokens
from mod_vision.yolo.blocks.registry import routed_row


def to_map(tokens: torch.Tensor) -> torch.Tensor:
    """View tokens (B, k, C) as a map (B, C, k, 1), on which 1x1 convolutions act token by token."""
    return tokens.transpose(1, 2).unsqueeze(-1)


def position_term(conv: nn.Module, values: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Run a depthwise convolution over the grid on which the routed `values` (B, k, C) lie, and pick them again."""
    grid = values.new_zeros(values.shape[0], plan.size[0] * plan.size[1], values.shape[2])
    grid = tokens_to_map(scatter_tokens(grid, plan.indices, values), plan.size)
    return plan.take(to_tokens(conv(grid)))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Attend with queries and keys (B, heads, k, d) narrower than the values (B, heads, k, d_v).

    On the CPU, torch's fused kernel takes only heads of one width, and its way out is slower than these lines.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def psa_attention(attn: Attention, x: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Run Ultralytics' `Attention` on routed tokens as a map (B, C, k, 1)."""
    widths = [attn.key_dim, attn.key_dim, attn.head_dim]
    parts = attn.qkv(x).reshape(x.shape[0], attn.num_heads, sum(widths), x.shape[2])
    q, k, v = (t.transpose(2, 3) for t in parts.split(widths, dim=2))
    out = attend(q, k, v, plan.mask, attn.scale).transpose(1, 2).flatten(2)
    out = out + position_term(attn.pe, v.transpose(1, 2).flatten(2), plan)
    return attn.proj(to_map(out))


def psa_block(block: PSABlock, x: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Run a `PSABlock` on routed tokens as a map (B, C, k, 1)."""
    x = x + psa_attention(block.attn, x, plan)
    return x + block.ffn(x)


@routed_row
class MoDC2PSA(RoutedBlock, C2PSA):
    """C2PSA whose attention blocks see the routed tokens only."""

    dense_type = C2PSA
    takes_ragged = True

    def check_block(self, where: str) -> tuple[int, int]:
        """Return channels and number of attention blocks."""
        return self.c, len(self.m)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, C, H, W)."""
        if self.dense:
            return C2PSA.forward(self, x)
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        tokens, plan = self.route_map(b)
        routed = plan.take(tokens)
        y = to_map(routed)
        for block in self.m:
            y = psa_block(block, y, plan)
        tokens = plan.put(tokens, routed, to_tokens(y))
        return self.cv2(torch.cat((a, tokens_to_map(tokens, plan.size)), 1))


def area_attention(attn: AAttn, x: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Run Ultralytics' `AAttn` on routed tokens as a map (B, C, k, 1).

    The dense block cuts the raster of tokens into `area` runs of equal length. So are the routed tokens here, which
    are in raster order: areas follow the content, and every one has work.
    """
    b, _, k, _ = x.shape
    qkv = to_tokens(attn.qkv(x)).reshape(b * attn.area, k // attn.area, attn.num_heads, 3 * attn.head_dim)
    q, key, v = qkv.transpose(1, 2).chunk(3, dim=-1)
    out = F.scaled_dot_product_attention(q, key, v)
    out, v = (t.transpose(1, 2).reshape(b, k, attn.all_head_dim) for t in (out, v))
    return attn.proj(to_map(out + position_term(attn.pe, v, plan)))


def area_block(block: ABlock, x: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Run an `ABlock` on routed tokens as a map (B, C, k, 1)."""
    x = x + area_attention(block.attn, x, plan)
    return x + block.mlp(x)


@routed_row
class MoDA2C2f(RoutedBlock, A2C2f):
    """A2C2f whose area-attention blocks see the routed tokens only.

    The number of routed tokens is rounded up to a multiple of the areas.
    """

    dense_type = A2C2f
    raster = True

    def check_block(self, where: str) -> tuple[int, int]:
        """Return channels and number of area-attention blocks."""
        if not isinstance(self.m[0], nn.Sequential):
            raise ValueError(
                f"{where}: this A2C2f has convolutions instead of attention (second argument False), so there is "
                "nothing to route; write A2C2f."
            )
        area = self.m[0][0].attn.area
        if not isinstance(area, int) or area < 1:
            raise ValueError(f"{where}: areas, the third argument, must be a whole number of at least 1, got {area!r}.")
        return self.cv1.conv.out_channels, sum(len(stage) for stage in self.m)

    def check_map(self, x: torch.Tensor) -> None:
        """Raise a ValueError if the map x (B, C, H, W) cannot be cut into the block's areas."""
        height, width, area = x.shape[2], x.shape[3], self.m[0][0].attn.area
        if height * width < area or (self.dense and height * width % area):
            raise ValueError(
                f"MoDA2C2f: a {height}x{width} map cannot be cut into {area} areas of equal size; use an image whose "
                "sides are multiples of the model's stride."
            )

    def fit_selected(self, k: int, num_tokens: int) -> int:
        """Round the number of routed tokens up to a multiple of the areas."""
        area = self.m[0][0].attn.area
        return min(ceil_div(k, area), num_tokens // area) * area

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, C, H, W)."""
        self.check_map(x)
        if self.dense:
            return A2C2f.forward(self, x)
        outputs = [self.cv1(x)]
        tokens, plan = self.route_map(outputs[0])
        routed = plan.take(tokens)
        y = to_map(routed)
        for stage in self.m:
            for block in stage:
                y = area_block(block, y, plan)
            changed = plan.put(tokens, routed, to_tokens(y))
            outputs.append(tokens_to_map(changed, plan.size))
        out = self.cv2(torch.cat(outputs, 1))
        return out if self.gamma is None else x + self.gamma.view(-1, len(self.gamma), 1, 1) * out


@routed_row
class MoDAIFI(RoutedBlock, AIFI):
    """AIFI (RT-DETR's encoder layer) on the routed tokens only."""

    dense_type = AIFI
    takes_ragged = True

    def check_block(self, where: str) -> tuple[int, int]:
        """Return channels, and one block."""
        return self.fc1.in_features, 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, C, H, W)."""
        if self.dense:
            return AIFI.forward(self, x)
        _, c, h, w = x.shape
        tokens, plan = self.route_map(x)
        pos = self.build_2d_sincos_position_embedding(w, h, c, like=x).to(x.dtype)
        pos = pos[0].index_select(0, plan.indices.flatten()).view(*plan.indices.shape, c)
        routed = plan.take(tokens)
        repeats = None if plan.real is None else ~plan.real
        changed = TransformerEncoderLayer.forward(self, routed, src_key_padding_mask=repeats, pos=pos)
        tokens = plan.put(tokens, routed, changed)
        return tokens_to_map(tokens, plan.size)
