"""The order of tokens: a whole number for each, no two alike, so that every runtime selects the same ones.

Scores that are equal in theory, as those of a blank sky, differ between runtimes in the last digits, and top-k
selections break ties in different ways. So scores are compared to about three digits, equal ones by position, and
padding comes last.
"""

from __future__ import annotations

import torch

STEPS = 512  # per unit of score; for large scores, per factor of e
LIMIT = 2**14 - 1
INT32_TOKENS = 2**31 // (4 * (LIMIT + 1))  # 32 bits rank in every runtime; for more tokens than these 64 are needed


def rank(scores: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Return unique whole numbers (..., N) in the order in which tokens are routed, the first one has the largest.

    Args:
        scores: (..., N) of any precision.
        inside: (..., N) False for tokens that come after all others, None if none does.
    """
    tokens = scores.shape[-1]
    kind = torch.int32 if int(tokens) <= INT32_TOKENS else torch.int64
    wide = scores.detach().float()
    steps = (wide.sign() * wide.abs().log1p() * STEPS).round().clamp(-LIMIT, LIMIT).to(kind)
    if inside is not None:
        steps = steps + inside.to(kind) * (2 * LIMIT + 1)
    return steps * tokens - torch.arange(tokens, dtype=kind, device=scores.device)
