"""Models on windows at a mean share of the pixels: thresholds by what their routers say of some images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_images
from mod_vision.yolo.run.letterbox import forward_letterboxed

ONE_WINDOW = 1e-3  # capacity at which an image costs little but the router


def plans_of(yolo: YOLO, images: Sequence[Path], imgsz: int) -> list[Any]:
    """Return what a model's router says of images."""
    own = copy_model(yolo)
    set_capacity(own, ONE_WINDOW)
    found = []
    for photo in read_images(images):
        forward_letterboxed(own.model, photo, imgsz)
        found.append(head_of(own.model).entry.plan)  # type: ignore[union-attr]
    return found


def at_share(yolo: YOLO, plans: list[Any], share: float) -> YOLO:
    """Return a copy of a model with the threshold that keeps a mean share of the pixels of some plans."""
    own = copy_model(yolo)
    set_capacity(own, share)
    entry: Any = head_of(own.model).entry  # type: ignore[union-attr]
    entry.crowded = None
    entry.set_threshold(entry.budget_threshold(plans, share))
    return own
