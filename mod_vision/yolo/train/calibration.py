"""Threshold mode of a whole Ultralytics model, calibrated on images to a mean budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics import YOLO

from mod_vision.routing import RoutedLayer, check_capacity, routed_layers
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_images, some_images
from mod_vision.yolo.run.letterbox import forward_letterboxed

PASSES = 3  # what a layer sees depends on the thresholds before it


def calibrate_thresholds(
    model: str | Path | YOLO, data: Any, capacity: float = 0.5, imgsz: int = 640, images: int = 200
) -> dict[str, list[float]]:
    """Make compute input-adaptive: each routed layer gets the threshold that keeps its mean share within a budget.

    The model is changed in place. From then on an image is given as many tokens as score above the thresholds, at
    least one in 16. `set_capacity` ends that. Exports have a fixed number of tokens.

    Args:
        model: A `YOLO` object with trained, learned routers.
        data: Data YAML, whose training split is taken, since thresholds are not chosen on the data they are judged by,
            or images as `yolo predict` reads them.
        capacity: Mean share of tokens over the images, in (0, 1).
        imgsz: Image size in pixels.
        images: Most images to look at.

    Returns:
        Share of tokens routed of each image, by routed layer.

    Raises:
        ValueError: If the model routes nothing, a router is not learned, the capacity is out of range, or no image can
            be read.
        FileNotFoundError: If there is no image.
    """
    yolo = load_model(model)
    if check_capacity(capacity) == 1:
        raise ValueError("capacity 1 routes every token of every image; a threshold needs a budget below 1.")
    set_capacity(yolo, capacity)
    layers = dict(routed_layers(yolo.model))
    photos = read_images(some_images(data, images, "train"))
    for _ in range(PASSES):
        plans = _route(yolo, layers, photos, imgsz)
        for name, layer in layers.items():
            layer.set_threshold(layer.budget_threshold(plans[name], capacity))
    plans = _route(yolo, layers, photos, imgsz)
    return {name: [plan.share for plan in found] for name, found in plans.items()}


def _route(yolo: YOLO, layers: dict[str, RoutedLayer], photos: list[Any], imgsz: int) -> dict[str, list[Any]]:
    """Run images one by one, and return each layer's plan for each of them."""
    plans: dict[str, list[Any]] = {name: [] for name in layers}
    for photo in photos:
        forward_letterboxed(yolo.model, photo, imgsz)
        for name, layer in layers.items():
            if layer.plan is not None:
                plans[name].append(layer.plan)
    return plans
