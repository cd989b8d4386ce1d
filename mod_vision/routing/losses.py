"""Losses of the router: detection knows where the objects are, so the router can be told."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

RECALL = 8.0  # how much a cell of an object weighs against one without
GUIDE_END = 0.2  # share of the guide loss's weight that is left at the end of a training


def token_weights(areas: torch.Tensor) -> torch.Tensor:
    """Return the weight of the tokens of objects with `areas` in tokens: 1 / sqrt(area), at most 1.

    An object weighs as much as the root of its size: a car of 36 tokens as six signs of one, not as 36 of them.
    """
    return areas.clamp(min=1.0).rsqrt()


def tokens_in_boxes(boxes: torch.Tensor, batch_idx: torch.Tensor, batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Weigh the tokens that touch a ground-truth box.

    Args:
        boxes: (M, 4) as centre x, centre y, width, height, relative to the image, in [0, 1].
        batch_idx: (M,) image of each box.
        batch: Number of images B.
        size: (H, W) of the token grid.

    Returns:
        (B, H, W), `token_weights` of the smallest box that touches the token's cell, 0 where none does.
    """
    height, width = size
    cx, cy, w, h = boxes.float().unbind(1)

    rows = touched((cy - h / 2) * height, (cy + h / 2) * height, height)
    inside = rows[:, :, None] & touched((cx - w / 2) * width, (cx + w / 2) * width, width)[:, None, :]
    weights = inside * token_weights(w * h * height * width)[:, None, None]
    return _largest_by_image(weights, batch_idx, batch)


def touched(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
    """Return which cells of an axis intervals from `low` to `high` (...) touch, in cells, (..., cells)."""
    start = torch.arange(cells, device=low.device)
    return (low[..., None] < start + 1) & (high[..., None] > start)


def tokens_in_masks(
    masks: torch.Tensor, size: tuple[int, int], batch: int, batch_idx: torch.Tensor, overlap: bool = True
) -> torch.Tensor:
    """Weigh the tokens that touch a ground-truth mask.

    Args:
        masks: With `overlap`, (B, h, w) index maps: 0 for background, i for the i-th object of the image; else
            (M, h, w), one mask per object.
        size: (H, W) of the token grid.
        batch: Number of images B.
        batch_idx: (M,) image of each object.
        overlap: Which of the two forms the masks have.

    Returns:
        (B, H, W), `token_weights` of the smallest mask that touches the token's cell, 0 where none does.
    """
    if not len(masks) or not len(batch_idx):
        return torch.zeros(batch, *size, device=masks.device)
    tokens_per_pixel = size[0] * size[1] / (masks.shape[1] * masks.shape[2])
    if not overlap:
        inside = (masks > 0).float()
        weights = token_weights(inside.sum(dim=(1, 2)) * tokens_per_pixel)[:, None, None]
        return _largest_by_image(F.adaptive_max_pool2d(inside[:, None], size)[:, 0] * weights, batch_idx, batch)
    ids = masks.flatten(1).long()
    areas = torch.zeros(batch, len(batch_idx) + 1, device=masks.device)  # an image has at most all objects
    areas.scatter_add_(1, ids, torch.ones_like(ids, dtype=areas.dtype))
    weights = token_weights(areas * tokens_per_pixel)
    weights[:, 0] = 0.0  # background
    return F.adaptive_max_pool2d(weights.gather(1, ids).view_as(masks)[:, None], size)[:, 0]


def _largest_by_image(weights: torch.Tensor, batch_idx: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the largest of the objects' weights (M, H, W) at each token of their images, (B, H, W)."""
    out = torch.zeros(batch, *weights.shape[1:], device=weights.device)
    return out.scatter_reduce(0, batch_idx.long().view(-1, 1, 1).expand_as(weights), weights, "amax")


def guide_loss(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of router logits against object tokens, both sides with the same weight in each image.

    Objects cover a small part of most images. Without the balance, the background would decide the loss, and the
    router would learn to send everything past the block. Each image counts by itself, so that the gradient does not
    depend on how a batch is spread over devices.

    Args:
        logits: (B, N) router scores.
        weights: (B, N) or (B, H, W) with N = H * W, above 0 for tokens that touch an object, and how much they count.

    Returns:
        Scalar. Zero gradient for a side without tokens, such as the objects of an empty image.
    """
    weights = weights.flatten(1)
    logits, is_object = logits.float(), (weights > 0).float()
    bce = F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")
    objects = (bce * weights).sum(1) / weights.sum(1).clamp(min=1e-6)
    rest = (bce * (1.0 - is_object)).sum(1) / (1.0 - is_object).sum(1).clamp(min=1.0)
    return 0.5 * (objects + rest).mean()


def cell_loss(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the scores of cells against those that touch an object, which weigh more.

    A cell that is computed in vain costs time, one that is not costs an object; so an object's cell weighs as much as
    `RECALL` others. Unlike `guide_loss`, the sides are not balanced in each image: scores compare across images.

    Args:
        logits: (B, N) router scores.
        weights: (B, N) or (B, H, W) with N = H * W, above 0 for cells that touch an object, and how much they count.

    Returns:
        Scalar, about 1 for a router that knows nothing.
    """
    weights = weights.flatten(1)
    bce = F.binary_cross_entropy_with_logits(logits.float(), (weights > 0).float(), reduction="none")
    weights = torch.where(weights > 0, RECALL * weights, 1.0)
    return (bce * weights).sum() / weights.sum()


def guide_anneal(progress: float) -> float:
    """Return the share of the guide loss's weight at a share `progress` of the training, in [0, 1].

    It falls from 1 to 0.2 along half a cosine: first the labels say where to look, later the task has more of a say.
    """
    return GUIDE_END + (1.0 - GUIDE_END) * 0.5 * (1.0 + math.cos(math.pi * progress))


def budget_loss(logits: torch.Tensor, capacity: float) -> torch.Tensor:
    """Squared gap between the mean probability of a token to be routed and the capacity.

    With it the logits are calibrated over all images, and a threshold at inference gives an image with much to see
    more compute, and an empty one less (the sparsity targets of A-ViT, arXiv 2112.07658, and DynamicViT, arXiv
    2106.02034, eq. 11).

    Args:
        logits: (B, N) router scores.
        capacity: Share of tokens in (0, 1].

    Returns:
        Scalar.
    """
    return (logits.float().sigmoid().mean() - capacity).square()


def z_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean square of the logits (B, N), a scalar: keeps them where gates are not flat and half precision is exact.

    ST-MoE's z-loss (arXiv 2202.08906, eq. 5) for routers that score each token by itself.
    """
    return logits.float().square().mean()
