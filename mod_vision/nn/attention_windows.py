"""Which tokens attend to each other: all of the map, or windows of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mod_vision.routing.capacity import ceil_div
from mod_vision.routing.rank import rank


def window_slots(size: tuple[int, int], window: int | None, device: torch.device) -> torch.Tensor:
    """Return the tokens of each window of a map.

    Args:
        size: (H, W) of the map.
        window: Side of a window in tokens, None for one window with the whole map.
        device: Device of the result.

    Returns:
        (windows, slots), the index of a token in the raster of the map, or H * W for slots of windows that reach beyond
        the map.
    """
    height, width = size
    tokens = torch.arange(height * width, device=device)
    if window is None:
        return tokens[None]
    rows, cols = ceil_div(height, window), ceil_div(width, window)
    beyond = (0, cols * window - width, 0, rows * window - height)
    grid = F.pad(tokens.view(height, width), beyond, value=height * width)
    return grid.view(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, window * window)


def best_slots(
    logits: torch.Tensor, slots: torch.Tensor, k: int, inside: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the k tokens in each window that `rank` puts first: padding comes late, slots beyond the map last.

    Args:
        logits: (B, N).
        slots: (windows, slots) as `window_slots` gives them.
        k: Tokens per window.
        inside: (B, N) False where a token is padding, None if that is not known.

    Returns:
        Logits and token indices (0 to N, N beyond the map), each (B, windows, k), in the order of their rank.
    """
    lowest = torch.finfo(logits.dtype).min
    by_window = F.pad(logits, (0, 1), value=lowest)[:, slots.flatten()].view(-1, *slots.shape)
    if inside is not None:
        inside = F.pad(inside, (0, 1), value=False)[:, slots.flatten()].view(-1, *slots.shape)
    order = rank(by_window, inside).topk(k, dim=2).indices
    return by_window.gather(2, order), slots.expand_as(by_window).gather(2, order)
