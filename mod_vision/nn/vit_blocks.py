"""Which blocks of a ViT are routed, and the rotary embeddings that they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def read_blocks(blocks: Any, depth: int, where: str) -> list[tuple[int, int]]:
    """Return the routed ranges of blocks, first and last, in order.

    Raises:
        ValueError: If `blocks` is not valid for a ViT of `depth` blocks.
    """
    if isinstance(blocks, str) and blocks == "alternate":
        return [(i, i) for i in range(1, depth, 2)]
    problem = ValueError(
        f"{where}: blocks must be alternate, or a list of block numbers from 0 to {depth - 1} and of [first, last] "
        f"ranges that do not overlap, got {blocks!r}."
    )
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise problem
    ranges = [list(item) if isinstance(item, (list, tuple)) else [item, item] for item in blocks]
    if not all(len(r) == 2 and all(isinstance(i, int) and not isinstance(i, bool) for i in r) for r in ranges):
        raise problem
    ranges.sort()
    if any(first > last for first, last in ranges) or ranges[0][0] < 0 or max(last for _, last in ranges) >= depth:
        raise problem
    flat = [i for r in ranges for i in range(r[0], r[1] + 1)]
    if len(set(flat)) < len(flat):
        raise problem
    return [(first, last) for first, last in ranges]


def pick_ropes(ropes: Sequence[torch.Tensor | None], indices: torch.Tensor) -> list[torch.Tensor | None]:
    """Return the rotary embedding of the selected tokens for each block, (B * windows, 1 or heads, k, D)."""

    def pick(rope: torch.Tensor | None) -> torch.Tensor | None:
        if rope is None:
            return None
        table = F.pad(rope if rope.ndim == 3 else rope[None], (0, 0, 0, 1))  # (1 or heads, N + 1, D)
        return table.index_select(1, indices.flatten()).unflatten(1, (-1, indices.shape[2])).transpose(0, 1)

    if all(rope is ropes[0] for rope in ropes):
        return [pick(ropes[0])] * len(ropes)
    return [pick(rope) for rope in ropes]


def rope_of(rope: torch.Tensor | None, block: int) -> torch.Tensor | None:
    """Return the rotary embedding of a block: some ViTs have one for each."""
    return rope[block] if rope is not None and rope.ndim == 4 else rope
