"""Pre-norm transformer block with optional 2-D rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each (B or 1, n, head_dim / 2)


def rotary_table(size: tuple[int, int], head_dim: int, like: torch.Tensor, base: float = 100.0) -> Rotation:
    """Return cos and sin of the axial rotary embedding of a token grid, each (1, H * W, head_dim / 2).

    The first half of the angles follows the row, the second the column (axial RoPE, arXiv 2403.13298, eq. 12). Angles
    depend on grid positions alone, so any image size and shape works.

    Args:
        size: (H, W) of the token grid.
        head_dim: Channels of one head, divisible by 4.
        like: Tensor whose device and dtype the table takes.
        base: Wavelength base.
    """
    height, width = size
    quarter = head_dim // 4
    freqs = base ** (-torch.arange(quarter, device=like.device, dtype=torch.float32) / quarter)
    rows = torch.arange(height, device=like.device, dtype=torch.float32)[:, None] * freqs
    cols = torch.arange(width, device=like.device, dtype=torch.float32)[:, None] * freqs
    angles = torch.cat((rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)), dim=-1)
    angles = angles.reshape(1, height * width, 2 * quarter)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate heads (..., B, heads, n, head_dim) by a table of cos and sin, each (B or 1, n, head_dim / 2)."""
    cos, sin = (t.unsqueeze(1) for t in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over whatever tokens it is given."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, rotation: Rotation | None = None, mask: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        """Attend within x (B, n, C); `mask` (B, 1, n, n) is True where a query may look at a key."""
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv if rotation is None else (*rotate(qkv[:2], rotation), qkv[2])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block, x + attention, then x + MLP.

    Args:
        dim: Channels.
        num_heads: Attention heads; must divide `dim`.
        mlp_ratio: Width of the MLP over `dim`.

    Raises:
        ValueError: If `dim` does not divide into heads.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{dim} channels are not divisible by {num_heads} heads.")
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self, x: torch.Tensor, rotation: Rotation | None = None, mask: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        """Return tokens (B, n, C) after the block."""
        x = x + self.attn(self.norm1(x), rotation, mask, causal)
        return x + self.mlp(self.norm2(x))
