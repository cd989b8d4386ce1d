"""Supervision of the router: detection knows where the objects are, so the router can be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tokens_in_boxes(boxes: torch.Tensor, batch_idx: torch.Tensor, batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Mark the tokens that touch a ground-truth box.

    Args:
        boxes: (M, 4) as centre x, centre y, width, height, relative to the image, in [0, 1].
        batch_idx: (M,) image of each box.
        batch: Number of images B.
        size: (H, W) of the token grid.

    Returns:
        (B, H, W), 1.0 where a box touches the token's cell, 0.0 elsewhere.
    """
    height, width = size
    cx, cy, w, h = boxes.float().unbind(1)

    def touched(centre: torch.Tensor, extent: torch.Tensor, cells: int) -> torch.Tensor:
        low, high = (centre - extent / 2) * cells, (centre + extent / 2) * cells
        start = torch.arange(cells, device=boxes.device)
        return (low[:, None] < start + 1) & (high[:, None] > start)

    inside = touched(cy, h, height)[:, :, None] & touched(cx, w, width)[:, None, :]
    marks = torch.zeros(batch, height, width, device=boxes.device)
    return marks.index_add_(0, batch_idx.long().flatten(), inside.float()).clamp_(max=1.0)


def tokens_in_masks(
    masks: torch.Tensor, size: tuple[int, int], batch: int, batch_idx: torch.Tensor | None = None
) -> torch.Tensor:
    """Mark the tokens that touch a ground-truth mask.

    Args:
        masks: (B, h, w) index maps with 0 for background; with `batch_idx`, (M, h, w), one mask per object.
        size: (H, W) of the token grid.
        batch: Number of images B.
        batch_idx: (M,) image of each object's mask, None for index maps.

    Returns:
        (B, H, W), 1.0 where a mask touches the token's cell, 0.0 elsewhere.
    """
    if not len(masks):
        return torch.zeros(batch, *size, device=masks.device)
    cells = F.adaptive_max_pool2d((masks > 0).float()[:, None], size)[:, 0]
    if batch_idx is None:
        return cells
    marks = torch.zeros(batch, *size, device=masks.device)
    return marks.index_add_(0, batch_idx.long().flatten(), cells).clamp_(max=1.0)


def guide_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of router logits against object tokens, both sides with the same weight.

    Objects cover a small part of most images. Without the balance, the background would decide the loss, and the
    router would learn to send everything past the block.

    Args:
        logits: (B, N) router scores.
        targets: (B, N) or (B, H, W) with N = H * W, 1.0 for tokens that touch an object.

    Returns:
        Scalar. Zero gradient for a side without tokens, such as the objects of an empty image.
    """
    targets = targets.flatten(1)
    bce = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    objects = (bce * targets).sum() / targets.sum().clamp(min=1.0)
    rest = (bce * (1.0 - targets)).sum() / (1.0 - targets).sum().clamp(min=1.0)
    return 0.5 * (objects + rest)
