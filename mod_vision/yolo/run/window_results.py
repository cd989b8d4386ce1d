"""What `yolo predict` and `yolo track` tell of windows: where they lay, and the features of objects in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ultralytics.utils.ops import scale_boxes

from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.model.windows import head_of


def tell_windows(predictor: Any) -> None:
    """Give each of the results the windows that were computed, as `windows`, and their `share` of the image's pixels.

    Those of other models have none. A share is above 1 where windows overlap much.

    Results are on the host by now, so this waits for nothing new.
    """
    head = head_of(getattr(predictor.model, "model", None))
    if head is not None and not predictor.mod_idle:  # else the plan is that of a frame before
        tell(predictor.results, head.entry.plan)


def tell(results: Sequence[Any], plan: WindowPlan | None) -> None:
    """Give results their windows and shares, None where whole images were run; see `tell_windows`."""
    windows = windows_on(plan, [result.orig_shape for result in results])
    shares = [1.0] * len(windows) if plan is None else plan.shares().tolist()
    for result, own, share in zip(results, windows, shares, strict=True):
        result.windows, result.share = own, share


def windows_on(plan: WindowPlan | None, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the windows on each image of a batch, x1, y1, x2, y2 in px of the image, each (k, 4) float32.

    They are in the order in which they were placed, cut at the border of the image; those of which all lies in the
    padding are left out.

    Args:
        plan: The windows, None where whole images were run.
        shapes: Height and width of each image, as it was before it was scaled and padded.
    """
    if plan is None:
        return [np.array([[0, 0, width, height]], np.float32) for height, width in shapes]
    size = plan.size[0] * plan.cell, plan.size[1] * plan.cell
    cells = [plan.rectangles(i).cpu().numpy() for i in range(len(shapes))]
    corners = [np.concatenate((own[:, 1::-1], own[:, 1::-1] + own[:, :1:-1]), 1) * plan.cell for own in cells]
    found = [scale_boxes(size, own.astype(np.float32), shape) for own, shape in zip(corners, shapes, strict=True)]
    return [own[(own[:, 2:] > own[:, :2]).all(1)] for own in found]


def keeping_windows(new: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap the making of results from others, such as those of some of the objects, or on another device."""

    @functools.wraps(new)
    def new_with_windows(self: Any) -> Any:
        made = new(self)
        if "windows" in vars(self):
            made.windows, made.share = self.windows, getattr(self, "share", None)
        return made

    return new_with_windows


def find_features_in_windows(predictor: Any) -> None:
    """Have trackers that know objects by what the head reads (`with_reid: True, model: auto`) find it in windows."""
    head = head_of(getattr(predictor.model, "model", None))
    if head is not None and hasattr(predictor, "get_obj_feats"):
        predictor.get_obj_feats = functools.partial(object_features, head, type(predictor).get_obj_feats)


def object_features(
    head: WindowedHead,
    features_at: Callable[..., list[Any]],
    maps: Sequence[torch.Tensor],
    which: Sequence[torch.Tensor],
) -> list[Any]:
    """Return the features (n, C) of the objects of each image.

    Args:
        head: The head.
        features_at: How Ultralytics takes them from maps of whole images, which count as images of their own here.
        maps: What it read last: of each window, or of whole images.
        which: For each image, the positions of its objects in the list that the head gave.

    Raises:
        ValueError: If the list has positions of a coarse pass too, whose maps are gone.
    """
    plan = head.windows
    if plan is None:
        return features_at(maps, which)
    if head.coarse:
        raise ValueError(
            f"with_reid: True, model: auto does not go with mod.windows.coarse: {head.coarse}; set model: in the "
            "tracker's YAML to a network of its own, such as yolo26n-cls.pt, or with_reid: False."
        )
    if not plan.width:  # the head did not run, and the maps are those of an earlier image
        return [[] for _ in which]
    every = torch.arange(sum(m.shape[2] * m.shape[3] for m in maps), device=maps[0].device)
    listed = plan.spread(torch.stack(features_at(maps, [every] * len(maps[0])))).flatten(1, 2)
    return [features[own] if len(own) else [] for features, own in zip(listed, which, strict=True)]
