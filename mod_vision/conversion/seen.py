"""What a router says of the images that were kept aside, and what windows of a size would show of their objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from mod_vision.conversion.parts import CONFIDENT
from mod_vision.routing.lost_objects import LostObjects, Objects, shown_share
from mod_vision.routing.placing import BUCKETS, gains_of, plan_windows, window_cells, window_count
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.model.coarse import KEPT, OVERLAP, boxes_of
from mod_vision.yolo.model.windows import head_of, overview
from mod_vision.yolo.run.objects import upright_boxes
from mod_vision.yolo.run.window_objects import WindowObjects
from mod_vision.yolo.train.fit import labelled_images

PASS = 0.25  # share of the side of a coarse pass that is tried
WHOLE = 0.9  # an object counts as found if a window shows this share of it: half is enough to see, not to measure


class Seen(NamedTuple):
    """An image that a router has looked at.

    Attributes:
        plan: The router's plan, whose windows are of no interest.
        boxes: (M, 4) corners of the objects in px of the input.
        coarse: (M,) True for objects that a coarse pass finds.
        doubts: (M,) what the router doubts of each, minus the logarithm of the probability that its class is where its
            centre is.
    """

    plan: WindowPlan
    boxes: torch.Tensor
    coarse: torch.Tensor
    doubts: torch.Tensor


class Shown(NamedTuple):
    """What windows of a size would show of an image, for each number of windows that occurs.

    Attributes:
        counts: (n,) numbers of windows, in increasing order.
        gains: (k,) what each window gains, falling.
        lost: (n,) objects that so many windows do not show as a whole, those larger than a window among them.
        found: How many of those larger than a window a coarse pass would find.
        objects: Number of objects.
        window_share: Share of the pixels that a window computes.
    """

    counts: np.ndarray
    gains: np.ndarray
    lost: np.ndarray
    found: int
    objects: int
    window_share: float

    def chosen(self, threshold: float) -> int:
        """Return which of the numbers of windows an image takes at a threshold, as an index."""
        return int(np.searchsorted(self.counts, (self.gains >= threshold).sum()))


@torch.no_grad()
def look_at(yolo: Any, data: str, imgsz: int, split: str = "test", zone_filter: ZoneFilter | None = None) -> list[Seen]:
    """Run a model on windows on the images of a split, and return what its router said of each.

    Of a zone, only the objects in it count.
    """
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    found = []
    for batch in labelled_images(yolo, data, imgsz, split, zone_filter):
        yolo.model.eval()(batch["img"])
        height, width = batch["img"].shape[2:]
        boxes = upright_boxes(batch).float().cpu() * torch.tensor((width, height) * 2)
        corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
        plan = entry.plan
        inside = None if plan.inside is None else plan.inside.cpu()
        plan = plan._replace(logits=plan.logits.cpu(), corners=plan.corners.cpu(), inside=inside)
        doubts = doubts_of(plan, boxes[:, :2], batch["cls"].flatten().long().cpu())
        found.append(Seen(plan, corners, found_coarsely(yolo, batch["img"], corners), doubts))
    return found


def doubts_of(plan: WindowPlan, centres: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return what a router doubts of objects, (M,): minus the logarithm of the probability of their class.

    Args:
        plan: What it says of an image.
        centres: (M, 2), x and y in px of the input.
        classes: (M,), their classes; a router that tells none says the same of all.
    """
    guesses = plan.guesses[0].cpu().float()
    (rows, columns), (x, y) = plan.size, (centres / plan.cell).long().unbind(1)
    cells = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return F.softplus(-guesses[classes if len(guesses) > 1 else 0, cells])


@torch.no_grad()
def count_lost(
    yolo: Any, data: str, imgsz: int, split: str, zone_filter: ZoneFilter | None = None
) -> LostObjects | None:
    """Count the objects of a split that the windows of a model lose, None for a model without windows.

    Of a zone, only the objects in it count.
    """
    head = head_of(yolo.model)
    if head is None:
        return None
    objects, found = WindowObjects(head, {}, dict(yolo.names)), LostObjects()
    for batch in labelled_images(yolo, data, imgsz, split, zone_filter):
        yolo.model.eval()(batch["img"])
        if head.entry.plan is not None:
            found.update(head.entry.plan, objects.of(batch), {})
    return found


@torch.no_grad()
def found_coarsely(yolo: Any, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return which objects a coarse pass finds, (M,): a confident box lies on them, of whatever class.

    Args:
        yolo: A model on windows.
        image: (1, 3, H, W).
        boxes: (M, 4) corners of the objects in px of the image.
    """
    head: Any = head_of(yolo.model)
    with head.entry.whole_image():
        found, scores = boxes_of(yolo.model(overview(image, round(1 / PASS), head.entry.cell)), head)
    found = found[0][scores[0].amax(-1) >= CONFIDENT].cpu() / PASS
    return (box_iou(boxes, found) >= OVERLAP).any(1)


def shown_by(seen: Seen, size: int) -> Shown:
    """Return what windows of `size` px would show of an image."""
    plan, boxes = seen.plan, seen.boxes
    window = window_cells(size, plan.size, plan.cell)
    most = window_count(plan.size, window, 1.0)
    placed = plan_windows(plan.logits, plan.size, window, most, plan.cell, None, plan.inside)
    counts = [*(n for n in BUCKETS if n < most), most]
    large = (boxes[:, 2:] - boxes[:, :2]).amax(1) > KEPT * size
    own = boxes[~large]
    objects = Objects(own, own.new_zeros(len(own)), torch.zeros(len(own), dtype=torch.long), [""] * len(own))
    first = [placed._replace(corners=placed.corners[:, :n]) for n in counts]
    lost = [int((shown_share(p, objects) < WHOLE).sum()) + int(large.sum()) for p in first]
    gains = gains_of(placed).numpy()
    by_coarse = int((large & seen.coarse).sum())
    return Shown(np.array(counts), gains, np.array(lost), by_coarse, len(boxes), placed.window_share)
