"""Which tokens hold an object, by the labels of a batch of Ultralytics."""

from __future__ import annotations

from typing import Any

import torch

from mod_vision.routing.losses import tokens_in_boxes, tokens_in_masks
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.model.coarse import largest_for_windows


def upright_boxes(batch: dict[str, Any]) -> torch.Tensor:
    """Return centre and size (M, 4) of the boxes of an Ultralytics batch as shares of the image's width and height.

    Of rotated boxes, centre, size and an angle in radians, they are those around them.
    """
    boxes: torch.Tensor = batch["bboxes"]
    if boxes.shape[1] == 4:
        return boxes
    size = boxes.new_tensor(batch["img"].shape[:1:-1])  # width, height
    sides, cos, sin = boxes[:, 2:4] * size, boxes[:, 4:].cos().abs(), boxes[:, 4:].sin().abs()
    return torch.cat((boxes[:, :2], (sides * cos + sides.flip(1) * sin) / size), 1)


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
    return tokens_in_boxes(upright_boxes(batch).to(batch["img"].device), idx, images, size)


def object_cells(
    batch: dict[str, Any], size: tuple[int, int], head: WindowedHead, by_class: bool = False
) -> torch.Tensor:
    """Weigh the cells (B, h, w) that touch a box which is the windows' to find, not the coarse pass's.

    Args:
        batch: Training or validation batch.
        size: Rows and columns of cells.
        head: The model's head.
        by_class: Weigh those of each class by themselves, (B, classes, h, w).
    """
    device = batch["img"].device
    boxes, idx = upright_boxes(batch).to(device), batch["batch_idx"].to(device)
    longer = (boxes[:, 2:] * boxes.new_tensor((size[1], size[0]))).amax(1) * head.entry.cell
    ours = longer <= largest_for_windows(head)
    if not by_class:
        return tokens_in_boxes(boxes[ours], idx[ours], len(batch["img"]), size)
    nc = int(head.nc)
    own = idx * nc + batch["cls"].to(device).flatten()
    return tokens_in_boxes(boxes[ours], own[ours], len(batch["img"]) * nc, size).unflatten(0, (-1, nc))
