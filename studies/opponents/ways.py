"""Ways to find the objects of an image: a model as a whole, on smaller images or on windows, and SAHI."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction
from ultralytics import YOLO

from mod_vision.eval.cost.latency import as_deployed
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.model.coarse import largest_for_windows
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.letterbox import Letterboxed, forward_letterboxed
from mod_vision.yolo.run.predict import Postprocess

SLICES_AT_ONCE = 8
OVERLAP = 0.2  # SAHI's default


class Found(NamedTuple):
    """What was found in an image.

    Attributes:
        boxes: (n, 4) corners in px of the image.
        scores: (n,).
        classes: (n,) indices.
        boxed: Where the image lies in the model's input, None of SAHI.
        plan: The windows, None without.
        largest: Longer side in px of the input up to which objects are the windows' to find.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    boxed: Letterboxed | None = None
    plan: WindowPlan | None = None
    largest: float = float("inf")


class Way(NamedTuple):
    """A way to find objects.

    Attributes:
        name: As the table has it.
        imgsz: Longer side of what the network sees, in px.
        prepare: Returns what finds the objects of a photo (H, W, 3), BGR, that score at least `conf`.
        timed: Whether its time is of interest.
    """

    name: str
    imgsz: int
    prepare: Callable[[float], Callable[[np.ndarray], Found]]
    timed: bool = True


def model_way(name: str, yolo: YOLO, imgsz: int, timed: bool = True) -> Way:
    """Return the way of a model at an image size, fused and channels-last as it is deployed."""

    def prepare(conf: float) -> Callable[[np.ndarray], Found]:
        net = as_deployed(deepcopy(yolo.model))
        post = Postprocess(yolo, net.names, bool(getattr(net, "end2end", False)), conf)
        head: Any = head_of(net)

        def find(photo: np.ndarray) -> Found:
            forward = forward_letterboxed(net, photo, imgsz)
            boxes = post(forward, photo).boxes.numpy()
            found = Found(boxes.xyxy, boxes.conf, boxes.cls.astype(int), forward.boxed)
            return found if head is None else found._replace(plan=head.entry.plan, largest=largest_for_windows(head))

        return find

    return Way(name, imgsz, prepare, timed)


def sahi_way(weights: str, side: int, imgsz: int) -> Way:
    """Return the way of SAHI: slices, several at a time, and the whole image besides, as is its default.

    At confidences as low as those of a validation it settles overlaps by NMS instead of its default.

    Args:
        weights: Checkpoint of the dense model.
        side: Side of a slice in px of the model's input.
        imgsz: Longer side of the image in such px.
    """
    logging.getLogger("sahi").setLevel(logging.ERROR)  # it says so for each image

    def prepare(conf: float) -> Callable[[np.ndarray], Found]:
        settings: Any = {"model_type": "ultralytics", "device": "cpu", "confidence_threshold": conf, "image_size": side}
        model = AutoDetectionModel.from_pretrained(model_path=weights, **settings)
        how: Any = {"overlap_height_ratio": OVERLAP, "overlap_width_ratio": OVERLAP, "batch_size": SLICES_AT_ONCE}

        def find(photo: np.ndarray) -> Found:
            rgb = np.ascontiguousarray(photo[..., ::-1])
            own = round(side * max(photo.shape[:2]) / imgsz)
            objects = get_sliced_prediction(rgb, model, own, own, verbose=0, **how).object_prediction_list
            boxes = np.array([o.bbox.to_xyxy() for o in objects], float).reshape(-1, 4)
            return Found(boxes, np.array([o.score.value for o in objects]), np.array([o.category.id for o in objects]))

        return find

    return Way(f"SAHI, slices of {side} px", side, prepare)
