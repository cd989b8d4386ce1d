"""The coarse pass: the same weights on the whole image at a fraction of its side, for objects larger than a window.

Boxes whose longer side is above half a window are the coarse pass's, smaller ones the windows'. Around that size both
may have found an object: the windows' boxes are kept up to three quarters of a window, and where a box of each side
overlaps one of the other of the same class by more than half (IoU), the higher score stays, the windows' if both are
equal. So YOLO26 stays free of NMS; in models with NMS, that settles it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ultralytics.utils.metrics import bbox_iou

from mod_vision.routing.losses import touched
from mod_vision.yolo.blocks.windows import WindowedHead

OWN, KEPT = 0.5, 0.75  # of a window's side: above it boxes are the coarse pass's, up to it the windows' are kept
OVERLAP = 0.5  # IoU
TOP = 300  # detections of a coarse pass that score cells
LEAST = 1e-4  # score of a cell that no detection touches


def boxes_of(out: Any, head: WindowedHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes (B, n, 4) as corners and scores (B, n, 1 or classes) of an output of the model."""
    boxes, scores, _, _ = _parts(detections(out), head)
    return boxes, scores


def cell_scores(coarse: Any, head: WindowedHead, size: torch.Size) -> torch.Tensor:
    """Return what a coarse pass says of each cell, the highest score of a box that touches it, (B, 1, h, w) logits.

    Args:
        coarse: Output of the coarse pass.
        head: The head.
        size: (H, W) of the full image.
    """
    boxes, scores = boxes_of(coarse, head)
    best, which = scores.amax(-1).topk(min(TOP, scores.shape[1]), dim=1)
    boxes = boxes.gather(1, which[..., None].expand(-1, -1, 4)) / (head.coarse * head.entry.cell)
    rows = touched(boxes[..., 1], boxes[..., 3], size[0] // head.entry.cell)
    cols = touched(boxes[..., 0], boxes[..., 2], size[1] // head.entry.cell)
    inside = rows[..., :, None] & cols[..., None, :]
    found = (inside * best[..., None, None]).amax(1, keepdim=True)
    found = found.clamp(LEAST, 1 - LEAST)
    return (found / (1 - found)).log()  # OpenVINO has no logit


def largest_for_windows(head: WindowedHead) -> float:
    """Return the longer side in px up to which an object is the windows' to find; endless without a coarse pass."""
    return KEPT * head.entry.window if head.coarse else float("inf")


def merge(fine: Any, coarse: Any, head: WindowedHead) -> Any:
    """Return the output of the windows with the large objects of the coarse pass, in the form of a plain output."""
    own: Any = head
    y, small = detections(fine), detections(coarse)
    if hasattr(own, "proto"):
        proto, small_proto = _proto(fine), _proto(coarse)
        y, small, proto = _join_masks(y, small, proto, small_proto, own)
        joined: Any = (_join(y, small, own), proto)
    else:
        joined = _join(y, small, own)
    return joined if own.export else (joined, fine[1])


def detections(out: Any) -> torch.Tensor:
    """Return the detections of an output: exports give them alone, with prototypes or with raw predictions."""
    while isinstance(out, tuple):
        out = out[0]
    return out


def with_detections(out: Any, y: torch.Tensor) -> Any:
    """Return an output with other detections in it."""
    return (with_detections(out[0], y), *out[1:]) if isinstance(out, tuple) else y


def _proto(out: Any) -> torch.Tensor:
    """Return the prototypes of an output."""
    return out[0][1] if isinstance(out[0], tuple) else out[1]


def _parts(y: torch.Tensor, head: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return boxes (B, n, 4) as corners, scores (B, n, 1 or nc), classes (B, n, 1 or 0) and the rest."""
    if head.end2end:
        return y[..., :4] if not _rotated(head) else _corners(y, head), y[..., 4:5], y[..., 5:6], y[..., 6:]
    y = y.transpose(1, 2)
    return _corners(y, head), y[..., 4 : 4 + head.nc], y[..., :0], y[..., 4 + head.nc :]


def _rotated(head: Any) -> bool:
    """Return whether boxes are rotated."""
    return hasattr(head, "ne")


def _corners(y: torch.Tensor, head: Any) -> torch.Tensor:
    """Return upright corners of boxes that are given by their centre; of rotated ones, of the square around."""
    if head.xyxy:
        return y[..., :4]
    centre, half = y[..., :2], y[..., 2:4] / 2
    if _rotated(head):
        half = half.amax(-1, keepdim=True).expand_as(half)
    return torch.cat((centre - half, centre + half), -1)


def _scaled(y: torch.Tensor, head: Any) -> torch.Tensor:
    """Return detections (B, n, C) of the coarse pass in px of the full image: boxes and keypoints."""
    factor = torch.ones(y.shape[-1], dtype=y.dtype, device=y.device)
    factor[:4] = 1 / head.coarse
    if hasattr(head, "kpt_shape"):
        first, (points, dims) = y.shape[-1] - head.nk, head.kpt_shape
        for axis in (0, 1):
            factor[first + axis : first + points * dims : dims] = 1 / head.coarse
    return y * factor


def _join(fine: torch.Tensor, coarse: torch.Tensor, head: Any) -> torch.Tensor:
    """Return the detections of both, each of its sizes."""
    if not head.end2end:
        coarse = _scaled(coarse.transpose(1, 2), head).transpose(1, 2)
        fine = silenced(fine, _longer(fine, head) <= KEPT * head.entry.window, head)
        coarse = silenced(coarse, _longer(coarse, head) > OWN * head.entry.window, head)
        return torch.cat((fine, coarse), 2)
    coarse = _scaled(coarse, head)
    keep_fine = _longer(fine, head) <= KEPT * head.entry.window
    keep_coarse = _longer(coarse, head) > OWN * head.entry.window
    mine = torch.where(keep_fine, fine[..., 4], -1.0)
    theirs = torch.where(keep_coarse, coarse[..., 4], -1.0)
    ious = bbox_iou(_parts(fine, head)[0][:, :, None], _parts(coarse, head)[0][:, None], xywh=False)[..., 0]
    same = (ious > OVERLAP) & (fine[..., 5, None] == coarse[:, None, :, 5])
    beaten = (same & (theirs[:, None] > mine[..., None])).any(2)
    lost = (same & (mine[..., None] >= theirs[:, None])).any(1)
    both = torch.cat((fine, coarse), 1)
    scores = torch.cat((mine.masked_fill(beaten, -1.0), theirs.masked_fill(lost, -1.0)), 1).clamp(min=0)
    top, which = scores.topk(min(head.max_det, scores.shape[1]), dim=1)
    chosen = both.gather(1, which[..., None].expand(-1, -1, both.shape[2]))
    return torch.cat((chosen[..., :4], top[..., None], chosen[..., 5:]), 2)


def _longer(y: torch.Tensor, head: Any) -> torch.Tensor:
    """Return the longer side of each box, (B, n)."""
    boxes = _parts(y, head)[0]
    return (boxes[..., 2:] - boxes[..., :2]).amax(-1)


def silenced(y: torch.Tensor, keep: torch.Tensor, head: Any) -> torch.Tensor:
    """Return detections, (B, n, C) of models without NMS and else (B, C, n), with the scores of those not kept at 0."""
    axis, count = (2, 1) if head.end2end else (1, head.nc)
    scores = y.narrow(axis, 4, count) * keep.unsqueeze(axis)
    return torch.cat((y.narrow(axis, 0, 4), scores, y.narrow(axis, 4 + count, y.shape[axis] - 4 - count)), axis)


def _join_masks(
    y: torch.Tensor, small: torch.Tensor, proto: torch.Tensor, small_proto: torch.Tensor, head: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return detections and prototypes with coefficients of their own for the windows' and the coarse prototypes."""
    factor = round(1 / head.coarse)
    large = F.interpolate(small_proto, scale_factor=factor, mode="bilinear", align_corners=False)
    large = large[:, :, : proto.shape[2], : proto.shape[3]]
    last = -1 if head.end2end else 1  # where coefficients are
    y = torch.cat((y, torch.zeros_like(y.narrow(last, 0, head.nm))), last)
    split = small.shape[last] - head.nm
    rest, own = small.narrow(last, 0, split), small.narrow(last, split, head.nm)
    return y, torch.cat((rest, torch.zeros_like(own), own), last), torch.cat((proto, large), 1)
