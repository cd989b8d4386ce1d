"""Threshold mode: an image gets as many tokens as score above a threshold, so compute follows what there is to see."""

from __future__ import annotations

from collections.abc import Sequence

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
    candidates = torch.cat([scores.flatten() for scores in logits]).unique()  # in ascending order
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        threshold = float(candidates[middle])
        shares = [float(count_above(scores, threshold)) / scores.shape[1] for scores in logits]
        if sum(shares) / len(shares) <= capacity:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])
