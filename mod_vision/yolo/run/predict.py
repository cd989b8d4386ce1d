"""Prediction of images in memory, as `yolo predict` does it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401, Ultralytics' NMS is that of torchvision once it is imported, and a slower one before
from ultralytics import YOLO
from ultralytics.utils.plotting import colors

from mod_vision.routing.finite import check_finite
from mod_vision.yolo.run.letterbox import Forward


class Detections(NamedTuple):
    """What was found in one image of n objects.

    Attributes:
        cls: Class index of each object, n numbers.
        name: Class name of each object.
        conf: Confidence of each object.
        box: Corners x1, y1, x2, y2 of each object in pixels of the image.
        polygon: Outline x, y, x, y, ... of each object in pixels, None from a model without masks.
    """

    cls: list[int]
    name: list[str]
    conf: list[float]
    box: list[list[float]]
    polygon: list[list[float]] | None


def predict_images(
    model: YOLO, images: Sequence[np.ndarray], imgsz: int, conf: float, batch: int, device: str
) -> list[Detections]:
    """Predict images with Ultralytics' own predictor.

    Images of one shape share a batch: padded to their own rectangle, each gets what it would get alone.

    Args:
        model: Detection or segmentation model.
        images: (H, W, 3) uint8, BGR, of any sizes.
        imgsz: Longer side of the model's input in pixels.
        conf: Lowest confidence.
        batch: Most images at a time.
        device: As in Ultralytics.

    Raises:
        ValueError: If a router gives NaN.
    """
    by_shape: dict[Any, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_shape[image.shape].append(i)
    found: dict[int, Detections] = {}
    for indices in by_shape.values():
        for start in range(0, len(indices), batch):
            chunk = indices[start : start + batch]
            results = model.predict(
                [images[i] for i in chunk], imgsz=imgsz, conf=conf, batch=len(chunk), device=device, verbose=False
            )
            check_finite(model.predictor.model.model)
            found |= {i: _read(result) for i, result in zip(chunk, results, strict=True)}
    return [found[i] for i in range(len(images))]


def _read(result: Any) -> Detections:
    """Return one of Ultralytics' results as plain numbers."""
    boxes = result.boxes.cpu().numpy()
    cls = boxes.cls.astype(int).tolist()
    polygons = None if result.masks is None else [outline.flatten().tolist() for outline in result.masks.xy]
    return Detections(cls, [result.names[c] for c in cls], boxes.conf.tolist(), boxes.xyxy.tolist(), polygons)


class Postprocess:
    """Turns the raw outputs of a forward into Ultralytics' results, by the predictor of the model's task."""

    def __init__(self, model: YOLO, names: Mapping[int, str], end2end: bool, conf: float) -> None:
        """Prepare the predictor.

        Args:
            model: The model, which tells the task.
            names: Name of each class.
            end2end: Whether the outputs are detections, not candidates for them.
            conf: Lowest confidence, in [0, 1].

        Raises:
            ValueError: If `conf` is not in [0, 1].
        """
        if not 0 <= conf <= 1:
            raise ValueError(f"conf must be in [0, 1], got {conf}.")
        predictor = model._smart_load("predictor")
        self.predictor = predictor(overrides={"task": model.task, "conf": conf, "save": False, "verbose": False})
        self.predictor.model = SimpleNamespace(
            names=names, end2end=end2end, kpt_shape=getattr(model.model, "kpt_shape", None)
        )
        self.predictor.batch = ([""],)

    def __call__(self, forward: Forward, image: np.ndarray) -> Any:
        """Return the `Results` of an image (H, W, 3) that was run."""
        with torch.inference_mode():
            return self.predictor.postprocess(forward.outputs, forward.batch, [image])[0]


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the colour (blue, green, red) that Ultralytics draws a class in."""
    return colors(index, bgr=True)
