"""Threshold mode of a whole Ultralytics model, calibrated on images to a mean budget."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.routing import RoutedLayer, check_capacity, routed_layers
from mod_vision.routing.padding import without_padding
from mod_vision.routing.threshold import budget_threshold
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
        data: Data YAML, whose validation split is taken, or images as `yolo predict` reads them.
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
    photos = read_images(some_images(data, images, "val"))
    for _ in range(PASSES):
        logits, _ = _route(yolo, layers, photos, imgsz)
        for name, layer in layers.items():
            layer.set_threshold(budget_threshold(logits[name], capacity))
    return _route(yolo, layers, photos, imgsz)[1]


def _route(
    yolo: YOLO, layers: dict[str, RoutedLayer], photos: list[Any], imgsz: int
) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[float]]]:
    """Run images one by one, and return each layer's scores (1, N) and routed share for each of them."""
    logits, shares = defaultdict(list), defaultdict(list)
    for photo in photos:
        forward_letterboxed(yolo.model, photo, imgsz)
        for name, layer in layers.items():
            if layer.plan is not None:
                logits[name].append(without_padding(layer.plan.logits, layer.plan.inside).float().cpu())
                shares[name].append(layer.plan.indices.shape[1] / layer.plan.logits.shape[1])
    return logits, shares
