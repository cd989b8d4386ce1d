"""Moving tokens: out of the map into a short sequence, and back."""

from __future__ import annotations

import torch


def tokens_to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """View tokens (B, N, C) as a map (B, C, H, W) of `size` (H, W); in exports the sizes stay those of the image.

    The channels move last: a transpose before the reshape would give a single image strides that torch does not take
    for channels-last memory, and the next convolution would copy it.
    """
    b, _, c = tokens.shape
    return tokens.reshape(b, *size, c).permute(0, 3, 1, 2)


def _rows(indices: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Turn per-image indices (B, k) into rows of the flattened (B * N, C) tokens, shape (B * k,)."""
    batch = torch.arange(indices.shape[0], device=indices.device, dtype=indices.dtype)
    return (indices + batch[:, None] * num_tokens).flatten()


def gather_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select tokens per image.

    Whole rows of the flattened tokens are copied: one memory-bound step, for which every backend has a fast kernel
    (an index expanded over the channels has not).

    Args:
        tokens: (B, N, C).
        indices: (B, k), each in [0, N).

    Returns:
        (B, k, C).
    """
    b, n, c = tokens.shape
    return tokens.reshape(b * n, c).index_select(0, _rows(indices, n)).view(b, indices.shape[1], c)


def scatter_tokens(tokens: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return `tokens` with the rows at `indices` overwritten by `values`; every other row is bit-identical.

    Args:
        tokens: (B, N, C).
        indices: (B, k), unique per image.
        values: (B, k, C), cast to the dtype of `tokens`.

    Returns:
        (B, N, C), a new tensor.
    """
    b, n, c = tokens.shape
    table, rows, values = tokens.reshape(b * n, c), _rows(indices, n), values.reshape(-1, c).to(tokens.dtype)
    if torch.onnx.is_in_onnx_export():  # whole rows by ScatterND, where index_copy becomes an index for each element
        return table.index_put((rows,), values).view(b, n, c)
    return table.index_copy(0, rows, values).view(b, n, c)
