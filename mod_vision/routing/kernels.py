"""Fused Triton steps around a routed block, for NVIDIA GPUs; `gather.py` and `layer.py` have the plain ones.

At batch 1 a GPU waits for launches more than for memory. Gather and LayerNorm are one launch here instead of three,
gate, residual and scatter are two instead of five. They are used on CUDA tensors if `MOD_VISION_TRITON=1` is set, but
not in exports; the tests run them on the CPU by Triton's interpreter. They have not been timed on a GPU yet.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from mod_vision.routing.gather import gather_tokens, scatter_tokens

SWITCH = "MOD_VISION_TRITON"


def use_kernels(tokens: torch.Tensor) -> bool:
    """Return whether the fused steps are to be used on these tokens.

    Raises:
        ImportError: If they were asked for, and Triton is not installed.
    """
    if os.environ.get(SWITCH) != "1" or not tokens.is_cuda or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if importlib.util.find_spec("triton") is None:
        raise ImportError(f"{SWITCH}=1 needs Triton, which is not installed: pip install triton.")
    return True


@torch.library.custom_op("mod_vision::gather_norm", mutates_args=())
def gather_norm(
    tokens: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select tokens and normalise them (LayerNorm) in one pass.

    Args:
        tokens: (B, N, C); copied first if not contiguous, as those of a map in channels-last memory are.
        indices: (B, k), unique per image.
        weight: (C,) of the LayerNorm.
        bias: (C,) of the LayerNorm.
        eps: Of the LayerNorm.

    Returns:
        The selected tokens and the normalised ones, both (B, k, C), and mean and 1/deviation (B, k, 1) in float32.
    """
    from mod_vision.routing.triton_steps import launch_gather_norm

    return launch_gather_norm(tokens.contiguous(), indices, weight, bias, eps)


@gather_norm.register_fake
def _(tokens: Any, indices: Any, weight: Any, bias: Any, eps: float) -> Any:
    routed = tokens.new_empty(*indices.shape, tokens.shape[2])
    statistics = tokens.new_empty(*indices.shape, 1, dtype=torch.float32)
    return routed, torch.empty_like(routed), statistics, torch.empty_like(statistics)


def _save_gather_norm(ctx: Any, inputs: Any, output: Any) -> None:
    tokens, indices, weight, *_ = inputs
    routed, _, mean, scale = output
    ctx.save_for_backward(indices, weight, routed, mean, scale)
    ctx.num_tokens = tokens.shape[1]


def _backward_gather_norm(ctx: Any, of_routed: Any, of_normed: Any, *_: Any) -> Any:
    indices, weight, routed, mean, scale = ctx.saved_tensors
    grad = of_normed.float()
    normal = (routed.float() - mean) * scale
    inner = grad * weight.float()
    through = scale * (inner - inner.mean(-1, keepdim=True) - normal * (inner * normal).mean(-1, keepdim=True))
    zeros = routed.new_zeros(routed.shape[0], ctx.num_tokens, routed.shape[2])
    of_tokens = scatter_tokens(zeros, indices, of_routed.float() + through)  # indices are unique: nothing to add up
    of_weight, of_bias = (grad * normal).sum((0, 1)), grad.sum((0, 1))
    return of_tokens, None, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


gather_norm.register_autograd(_backward_gather_norm, setup_context=_save_gather_norm)


@torch.library.custom_op("mod_vision::gated_scatter", mutates_args=())
def gated_scatter(
    base: torch.Tensor, indices: torch.Tensor, routed: torch.Tensor, changed: torch.Tensor, gates: torch.Tensor
) -> torch.Tensor:
    """Return `base` with the rows at `indices` overwritten by x + g (f(x) - x), in one pass.

    Args:
        base: (B, N, C), what skipped tokens get.
        indices: (B, k), unique per image.
        routed: (B, k, C), tokens x before the block.
        changed: (B, k, C), tokens f(x) after it.
        gates: (B, k, 1).

    Returns:
        (B, N, C), a new tensor.
    """
    from mod_vision.routing.triton_steps import launch_gated_scatter

    out = base.clone(memory_format=torch.contiguous_format)
    return launch_gated_scatter(out, indices, routed.contiguous(), changed.contiguous(), gates)


@gated_scatter.register_fake
def _(base: Any, indices: Any, routed: Any, changed: Any, gates: Any) -> Any:
    return torch.empty_like(base, memory_format=torch.contiguous_format)


def _save_gated_scatter(ctx: Any, inputs: Any, output: Any) -> None:
    _, indices, routed, changed, gates = inputs
    ctx.save_for_backward(indices, routed, changed, gates)


def _backward_gated_scatter(ctx: Any, grad: Any) -> Any:
    indices, routed, changed, gates = ctx.saved_tensors
    of_rows = gather_tokens(grad, indices)
    of_base = scatter_tokens(grad, indices, torch.zeros_like(of_rows))
    of_changed = of_rows * gates.to(of_rows.dtype)
    of_gates = (of_rows.float() * (changed - routed).float()).sum(-1, keepdim=True).to(gates.dtype)
    return of_base, None, of_rows - of_changed, of_changed, of_gates


gated_scatter.register_autograd(_backward_gated_scatter, setup_context=_save_gated_scatter)
