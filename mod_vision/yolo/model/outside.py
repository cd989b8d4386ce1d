"""What lies outside of the zones of a model: no windows, and no detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mod_vision.routing.padding import shrunk_frame
from mod_vision.routing.window_layer import COVERED, CROWDED, WindowedLayer
from mod_vision.routing.zone import extent_of, points_in
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.data.zones import Zone, masks_of
from mod_vision.yolo.model.coarse import boxes_of, detections, silenced, with_detections


def set_entry(entry: WindowedLayer, zones: Sequence[Zone] | None) -> None:
    """Give an entry its zones, and as many windows as they need to one whose router covers them."""
    like = next(entry.parameters(), None)
    entry.set_zone(None if zones is None else masks_of(zones).to(None if like is None else like.device))
    if entry.router.covers and entry.capacities[0] < 1:
        entry.set_threshold(COVERED)
        entry.crowded = CROWDED


def silence_outside(out: Any, head: WindowedHead, images: torch.Tensor) -> Any:
    """Return the output of a model in which detections whose centre lies outside of the zone score nothing.

    Args:
        out: Output for images (B, C, H, W), of an export too.
        head: Head of the model.
        images: The images.
    """
    entry = head.entry
    sums = entry.zones_for(len(images))
    if sums is None:
        return out
    y = detections(out)
    boxes, _ = boxes_of(y, head)
    size = boxes.new_tensor(images.shape[:1:-1])
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2 / size).flip(-1)
    inside = points_in(sums, centres, extent_of(shrunk_frame(images)))
    return with_detections(out, silenced(y, inside, head))
