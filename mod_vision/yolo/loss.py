"""Guide loss in Ultralytics' training: what the router should look at is what the labels mark."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.routing.losses import guide_loss, tokens_in_boxes, tokens_in_masks
from mod_vision.yolo.parse import forget_pretrained
from mod_vision.yolo.settings import ModSettings

GUIDE = "guide_loss"
Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


def object_tokens(batch: dict[str, Any], size: tuple[int, int], overlap: bool = True) -> torch.Tensor:
    """Return the tokens (B, H, W) that touch an object of an Ultralytics batch: its masks, else its boxes.

    The labels are those after augmentation, so they fit the image that the router saw.

    Args:
        batch: Training or validation batch.
        size: (H, W) of the token grid.
        overlap: Whether masks are one index map per image (Ultralytics' `overlap_mask`).
    """
    images = len(batch["img"])
    idx = batch["batch_idx"].to(batch["img"].device)
    if "masks" in batch:
        masks = batch["masks"].to(batch["img"].device)
        return tokens_in_masks(masks, size, images, None if overlap else idx)
    return tokens_in_boxes(batch["bboxes"][:, :4].to(batch["img"].device), idx, images, size)


def guided_layers(model: nn.Module) -> list[RoutedLayer]:
    """Return the layers whose router can be guided: learned, and below capacity 1."""
    return [layer for _, layer in routed_layers(model) if layer.router.learned and not layer.dense]


def with_guide(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model's `loss(batch, preds)` so that the guide loss joins it, with a column of its own in the results.

    `loss` is where detection, segmentation, RT-DETR and distillation all pass with both the batch and the criterion's
    items at hand.
    """

    @functools.wraps(loss)
    def guided_loss(self: nn.Module, batch: dict[str, Any], preds: Any = None) -> Loss:
        total, items = loss(self, batch, preds)
        forget_pretrained(self.yaml)  # in training from here on, and saved with the weights
        settings = ModSettings.from_yaml(self.yaml.get("mod"))
        layers = [layer for layer in guided_layers(self) if layer.plan is not None]  # None: `preds` of another model
        if not layers or not settings.guide or "bboxes" not in batch:
            return total, items
        overlap = bool(getattr(self.args, "overlap_mask", True))
        plans = [layer.plan for layer in layers]
        terms = [guide_loss(p.logits, p.touched(object_tokens(batch, p.size, overlap))) for p in plans]
        guide = settings.guide * torch.stack(terms).mean()
        images = len(batch["img"]) if total.ndim else 1  # RT-DETR's loss is one number per batch, YOLO's are per image
        total = torch.cat((total.reshape(-1), (guide * images).reshape(1)))
        return total, {**items, GUIDE: guide.detach()}

    return guided_loss
