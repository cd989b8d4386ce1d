"""Capacity: the share of tokens that pass the heavy block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch


def check_capacity(value: Any, where: str = "capacity") -> float:
    """Return `value` as a float in (0, 1].

    Args:
        value: What the user wrote.
        where: The place it was written, named in the error.

    Raises:
        ValueError: If `value` is no number in (0, 1].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 < value <= 1.0:
        raise ValueError(
            f"{where}: capacity must be a number in (0, 1], got {value!r}. It is the share of tokens that pass the "
            "heavy block: 0.5 computes every second token, 1.0 is the dense block."
        )
    return float(value)


def num_routed(num_tokens: int, capacity: float) -> int:
    """Return k = max(1, ceil(capacity * num_tokens)), the number of routed tokens per image.

    The small slack keeps a product such as 0.7 * 10 = 7.000000000000001 from rounding up to 8. While an exporter
    traces, the number of tokens is a tensor, and integers make k of it, so that the graph takes images of other sizes.
    """
    if isinstance(num_tokens, torch.Tensor):
        share = Fraction(capacity).limit_denominator(10**6)
        return ceil_div(num_tokens * max(1, share.numerator), share.denominator)
    return max(1, math.ceil(capacity * num_tokens - 1e-6))


def ceil_div(size: int, step: int) -> int:
    """Return size / step, rounded up; of positive numbers only, because ONNX rounds negative ones towards zero."""
    return (size + step - 1) // step


def capacity_per_depth(value: Any, depth: int, where: str = "capacity") -> tuple[float, ...]:
    """Spread a capacity, or a list of them from the first block to the last, over `depth` blocks.

    Later blocks work on a prefix of the tokens of earlier ones, so a list must not increase (SparseViT, arXiv
    2303.17605, and p-MoD, arXiv 2412.04449, both find that later layers need fewer tokens).

    Args:
        value: One capacity, or a sequence of them that is stretched evenly over the blocks.
        depth: Number of blocks.
        where: The place it was written, named in the error.

    Raises:
        ValueError: If a value is outside (0, 1], the list is empty, longer than `depth`, or increases.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (check_capacity(value, where),) * depth
    steps = [check_capacity(v, where) for v in value]
    if not 1 <= len(steps) <= depth:
        raise ValueError(f"{where}: {len(steps)} capacities for {depth} blocks, give between 1 and {depth}.")
    if any(later > earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{where}: capacities must not increase with depth, got {list(value)}.")
    return tuple(steps[i * len(steps) // depth] for i in range(depth))
