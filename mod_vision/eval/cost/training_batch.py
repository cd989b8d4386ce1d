"""A training batch without a data set, for measurements."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg

OBJECTS = 8  # per image


def training_batch(images: int, imgsz: int, segment: bool, device: torch.device) -> dict[str, Any]:
    """Return noise with random boxes, and their masks for segmentation, as Ultralytics' data loader gives them."""
    boxes = torch.cat((0.2 + 0.6 * torch.rand(images * OBJECTS, 2), 0.05 + 0.3 * torch.rand(images * OBJECTS, 2)), 1)
    batch = {
        "img": torch.rand(images, 3, imgsz, imgsz),
        "batch_idx": torch.arange(images).repeat_interleave(OBJECTS).float(),
        "cls": torch.zeros(images * OBJECTS, 1),
        "bboxes": boxes,
    }
    if segment:
        side = imgsz // get_cfg().mask_ratio
        centres = (torch.arange(side) + 0.5) / side
        masks = torch.zeros(images, side, side)
        for i, (x, y, w, h) in enumerate(boxes.tolist()):
            inside = ((centres - y).abs() < h / 2)[:, None] & ((centres - x).abs() < w / 2)
            masks[i // OBJECTS][inside] = i % OBJECTS + 1
        batch |= {"masks": masks, "sem_masks": (masks > 0).float()}
    return {key: value.to(device) for key, value in batch.items()}


def training_loss(net: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the loss of a batch as a training has it."""
    if not hasattr(net, "args") or isinstance(net.args, dict):
        net.args = get_cfg()
    return net.loss(batch)[0].sum()
