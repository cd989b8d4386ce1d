"""Executed FLOPs: those of the operations that really ran, attention included."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # for which torch has no formula


def executed_gflops(model: nn.Module, imgsz: int = 640, image: torch.Tensor | None = None) -> float:
    """Count the GFLOPs (1e9 multiplications and additions) of one forward of a square image.

    The count follows the tensors through the forward, so skipped tokens do not count. Attention runs fused on the CPU,
    since its plain matrices would not fit into memory for large images; elsewhere as plain matrix products, since not
    every fused kernel has a formula in torch's counter.

    Args:
        model: Torch model that takes (1, 3, imgsz, imgsz).
        imgsz: Image size in pixels.
        image: (1, 3, H, W), for models whose cost depends on the image; by default a black one of `imgsz`.
    """
    return _count(model, imgsz, image).get_total_flops() / 1e9


def executed_gflops_by_layer(model: nn.Module, imgsz: int = 640, image: torch.Tensor | None = None) -> dict[str, float]:
    """Count the GFLOPs of each module of a model by its name, as `executed_gflops` does; `Global` is the whole."""
    root = f"{type(model).__name__}."
    counts = _count(model, imgsz, image).get_flop_counts()
    return {name.removeprefix(root): sum(by_op.values()) / 1e9 for name, by_op in counts.items()}


def _count(model: nn.Module, imgsz: int, image: torch.Tensor | None = None) -> FlopCounterMode:
    """Run a forward under torch's counter."""
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, imgsz, imgsz) if image is None else image
    image = image.to(parameter.device, parameter.dtype)
    counter = FlopCounterMode(display=False, custom_mapping={FUSED_ON_CPU: _fused_flops})
    attention = nullcontext() if parameter.device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)
    mha_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel is not counted
    training = model.training
    try:
        with torch.inference_mode(), attention, counter:
            model.eval()(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(mha_fastpath)
        model.train(training)
    return counter


def _fused_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of fused attention, by the shapes of its operands."""
    return sdpa_flop_count(query, key, value)
