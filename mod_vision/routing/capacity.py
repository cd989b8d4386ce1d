"""Capacity: the share of tokens that pass the heavy block."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any


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

    Capacity is taken as a fraction, so that 0.7 of 10 is 7 and not 8, and so that the integers of an exporter's trace
    stay in the graph: it can take other image sizes.
    """
    numerator, denominator = _as_fraction(capacity)
    return ceil_div(num_tokens * numerator, denominator)


@cache
def _as_fraction(capacity: float) -> tuple[int, int]:
    """Return the closest fraction of at most six digits, above 0."""
    share = Fraction(capacity).limit_denominator(10**6)
    return max(1, share.numerator), share.denominator


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
