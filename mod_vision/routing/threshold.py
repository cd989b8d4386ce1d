"""Threshold mode: an image gets as many tokens as score above a threshold, so compute follows what there is to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

BUCKETS = 16  # numbers of routed tokens are multiples of N / 16: few shapes, so that kernels and memory are reused


def count_above(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return how many tokens of each image are routed, (B,), for router scores (B, N).

    The tokens above the threshold, rounded up to the next multiple of N / 16, and at least one.
    """
    tokens = logits.shape[1]
    above = (logits > threshold).sum(dim=1)
    buckets = torch.div(above * BUCKETS + tokens - 1, tokens, rounding_mode="floor").clamp(min=1)
    return torch.div(buckets * tokens, BUCKETS, rounding_mode="floor").clamp(min=1)


def budget_threshold(logits: Sequence[torch.Tensor], capacity: float) -> float:
    """Return the lowest threshold at which the mean share of routed tokens is within a budget.

    Args:
        logits: Router scores of some images, each (1, N), of any N.
        capacity: The budget, mean share of tokens in (0, 1].
    """

    def shares(threshold: float) -> list[float]:
        return [float(count_above(scores, threshold)) / scores.shape[1] for scores in logits]

    return lowest_threshold(torch.cat([scores.flatten() for scores in logits]), shares, capacity)


def lowest_threshold(candidates: torch.Tensor, shares: Callable[[float], Sequence[float]], capacity: float) -> float:
    """Return the lowest of some thresholds at which the mean share is within a budget, the highest if none is.

    Args:
        candidates: Thresholds, in any order.
        shares: Gives the share of each image at a threshold; a higher threshold gives no larger ones.
        capacity: The budget, mean share in (0, 1].
    """
    candidates = candidates.unique()  # in ascending order
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        found = shares(float(candidates[middle]))
        low, high = (low, middle) if sum(found) / len(found) <= capacity else (middle + 1, high)
    return float(candidates[low])
