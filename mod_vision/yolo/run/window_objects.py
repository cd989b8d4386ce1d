"""The objects of a validation that are the windows' to find, and the scores that other routers would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics.data.utils import img2label_paths

from mod_vision.routing.losses import tokens_in_boxes
from mod_vision.routing.lost_objects import LostObjects, Objects
from mod_vision.routing.window_routers import PRIOR_GRID, prior_logits, sure_logits
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.coarse import largest_for_windows
from mod_vision.yolo.run.images import some_images
from mod_vision.yolo.run.objects import object_cells, upright_boxes

PRIOR_IMAGES = 2000


class WindowObjects:
    """Counts the objects that the windows of a model lose on a split.

    Args:
        head: The model's head.
        data: The data set as Ultralytics describes it.
        names: Class names by index.
    """

    def __init__(self, head: WindowedHead, data: dict[str, Any], names: dict[int, str]) -> None:
        self.head, self.names, self.found = head, names, LostObjects()
        self.prior = position_prior(data)

    def update(self, batch: dict[str, Any]) -> None:
        """Count a batch that the model ran last."""
        plan = self.head.entry.plan
        if plan is not None:
            self.found.update(plan, self.of(batch), self._others(plan, batch))

    def of(self, batch: dict[str, Any]) -> Objects:
        """Return the objects of a batch but for those that are the coarse pass's."""
        device = batch["img"].device
        height, width = batch["img"].shape[2:]
        boxes = upright_boxes(batch).to(device).float() * torch.tensor((width, height) * 2, device=device)
        ours = boxes[:, 2:].amax(1) <= largest_for_windows(self.head)
        idx, classes = batch["batch_idx"].to(device).long(), batch["cls"].flatten().long().tolist()
        gains = torch.tensor([ratio[0][0] for ratio in batch["ratio_pad"]], device=device)
        areas = boxes[:, 2:].prod(1) / gains[idx].square()
        corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
        kept = [self.names[c] for c, own in zip(classes, ours.tolist(), strict=True) if own]
        return Objects(corners[ours], areas[ours], idx[ours], kept)

    def _others(self, plan: WindowPlan, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the scores (B, N) of routers that know nothing, where objects lie in any image, and the labels."""
        cells = object_cells(batch, plan.size, self.head).flatten(1)
        scores = {"random": torch.randn_like(plan.logits)}
        if self.prior is not None:
            spread = prior_logits(self.prior[None, None], plan.size)
            scores["prior"] = spread.flatten(1).to(plan.logits).expand_as(plan.logits)
        return scores | {"oracle": sure_logits(cells).to(plan.logits)}


def position_prior(data: dict[str, Any]) -> torch.Tensor | None:
    """Return how often objects touch each part of the images of the training split, logits (16, 16), None without.

    Args:
        data: The data set as Ultralytics describes it.
    """
    if not data.get("train"):
        return None
    try:
        images = [str(path) for path in some_images(split_images(data, "train"), PRIOR_IMAGES)]
    except FileNotFoundError:  # scoring needs no training images
        return None
    labels = [Path(path) for path in img2label_paths(images)]
    boxes = [label_boxes(path) for path in labels if path.is_file()]
    if not boxes or not sum(map(len, boxes)):
        return None
    grid = (PRIOR_GRID, PRIOR_GRID)
    touched = [tokens_in_boxes(b, torch.zeros(len(b)), 1, grid)[0] > 0 for b in boxes]
    often = torch.stack(touched).float().mean(0)
    return often.clamp(1e-4, 1 - 1e-4).logit()


def label_boxes(path: Path) -> torch.Tensor:
    """Return the boxes (M, 4) of a label file, those around its polygons; other lines are left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = [float(value) for value in line.split()[1:]]
        except ValueError:
            continue
        if len(values) > 4:
            xs, ys = values[::2], values[1::2]
            values = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
        if len(values) == 4 and all(0 <= value <= 1 for value in values):
            found.append(values)
    return torch.tensor(found).view(-1, 4)
