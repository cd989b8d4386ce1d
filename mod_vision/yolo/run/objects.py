"""Which tokens hold an object, by the labels of a batch of Ultralytics."""

from __future__ import annotations

from typing import Any

import torch

from mod_vision.routing.losses import tokens_in_boxes, tokens_in_masks


def object_tokens(batch: dict[str, Any], size: tuple[int, int], overlap: bool = True) -> torch.Tensor:
    """Weigh the tokens (B, H, W) that touch an object of an Ultralytics batch: its masks, else its boxes.

    The labels are those after augmentation, so they fit the image that the router saw.

    Args:
        batch: Training or validation batch.
        size: (H, W) of the token grid.
        overlap: Whether masks are one index map per image (Ultralytics' `overlap_mask`).

    Returns:
        How much each token counts in the guide loss, 0 where no object is.
    """
    images = len(batch["img"])
    idx = batch["batch_idx"].to(batch["img"].device)
    if "masks" in batch:
        return tokens_in_masks(batch["masks"].to(batch["img"].device), size, images, idx, overlap)
    return tokens_in_boxes(batch["bboxes"][:, :4].to(batch["img"].device), idx, images, size)
