"""The Triton kernels of `kernels.py`, apart from it because Triton is there on Linux with a GPU build of torch only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _gather_norm(
    tokens, indices, weight, bias, routed, normed, means, scales, num_tokens, k, channels, eps, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # of the (B * k) routed tokens
    source = row // k * num_tokens + tl.load(indices + row)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(tokens + source * channels + column, mask=inside, other=0.0)
    tl.store(routed + row * channels + column, x, mask=inside)
    wide = x.to(tl.float32)
    mean = tl.sum(wide, axis=0) / channels
    centred = tl.where(inside, wide - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / channels + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    y = centred * scale * w + b
    tl.store(normed + row * channels + column, y.to(normed.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)


@triton.jit
def _gated_scatter(out, indices, routed, changed, gates, num_tokens, k, channels, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = row // k * num_tokens + tl.load(indices + row)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(routed + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(changed + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gates + row).to(tl.float32)
    tl.store(out + target * channels + column, (x + g * (f - x)).to(out.dtype.element_ty), mask=inside)


def launch_gather_norm(
    tokens: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the kernel of `gather_norm`; shapes as there."""
    batch, num_tokens, channels = tokens.shape
    k = indices.shape[1]
    routed = tokens.new_empty(batch, k, channels)
    normed = torch.empty_like(routed)
    means = tokens.new_empty(batch, k, 1, dtype=torch.float32)
    scales = torch.empty_like(means)
    _gather_norm[(batch * k,)](
        tokens, indices.contiguous(), weight, bias, routed, normed, means, scales, num_tokens, k, channels, eps,
        BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return routed, normed, means, scales


def launch_gated_scatter(
    out: torch.Tensor, indices: torch.Tensor, routed: torch.Tensor, changed: torch.Tensor, gates: torch.Tensor
) -> torch.Tensor:
    """Run the kernel of `gated_scatter` on `out`, which holds what skipped tokens get; shapes as there."""
    batch, num_tokens, channels = out.shape
    k = indices.shape[1]
    _gated_scatter[(batch * k,)](
        out, indices.contiguous(), routed, changed, gates.contiguous(), num_tokens, k, channels,
        BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return out
