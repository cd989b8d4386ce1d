"""Detectors on windows that find something, frames of a camera that moves, and what `predict` finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from windowed import calibrated

from mod_vision.resources import resource_dir
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_image

PHOTOS = sorted((resource_dir("assets") / "open" / "images" / "val").glob("*.jpg"))
HEIGHT, WIDTH = 256, 320
CONF = 0.25
OBJECTS = 20  # positions that score above one half in the first frame
ADAPTIVE = 0.7  # worth of a window, at which frames have one or two, and their quarters none or one
STEP = 32  # px that the camera moves from frame to frame


@pytest.fixture(scope="module")
def frames(photos) -> list[np.ndarray]:
    """A camera that moves over a photo, to the right."""
    photo = cv2.resize(read_image(photos[0]), (WIDTH + 3 * STEP, 320))
    return [np.ascontiguousarray(photo[:HEIGHT, x * STEP : x * STEP + WIDTH]) for x in range(4)]


def save_detector(
    name: str, frames: Sequence[np.ndarray], folder: Path, least: float | None = None, **windows: Any
) -> Path:
    """Save a model on windows that finds something: its scores are random, but above one half at few positions."""
    path = calibrated(name, PHOTOS, folder, size=128, capacity=0.5, **windows)
    yolo: Any = YOLO(path)
    head = head_of(yolo.model)
    boxes, classes = (head.one2one_cv2, head.one2one_cv3) if head.end2end else (head.cv2, head.cv3)
    for box, cls in zip(boxes, classes, strict=True):
        torch.nn.init.normal_(cls[-1].weight, std=0.2)
        torch.nn.init.zeros_(cls[-1].bias)
        box[-1].weight.data.mul_(0.1)
        if head.reg_max == 1:
            torch.nn.init.constant_(box[-1].bias, 6.0)  # strides to each side: objects of one frame touch in the next
    image = torch.from_numpy(np.ascontiguousarray(frames[0][..., ::-1].transpose(2, 0, 1)))[None] / 255
    with torch.no_grad():
        raw = yolo.model.eval()(image)[1]
    middle = raw.get("one2one", raw)["scores"].amax(1).flatten().topk(OBJECTS).values[-1]
    for cls in classes:
        torch.nn.init.constant_(cls[-1].bias, -float(middle))
    if least is not None:
        head.entry.set_threshold(least)
    yolo.save(path)
    return path


@pytest.fixture(scope="module", params=[None, ADAPTIVE], ids=["fixed", "adaptive"])
def detector(request, frames, tmp_path_factory) -> Path:
    """A detector without NMS, on a fixed number of windows or on as many as an image needs."""
    return save_detector("yolo26n", frames, tmp_path_factory.mktemp("detect"), request.param)


@pytest.fixture(scope="module")
def segmenter(frames, tmp_path_factory) -> Path:
    """The same with masks, on a fixed number of windows."""
    return save_detector("yolo26n-seg", frames, tmp_path_factory.mktemp("segment"))


@pytest.fixture(scope="module")
def with_nms(frames, tmp_path_factory) -> Path:
    """A detector with NMS, on a fixed number of windows."""
    return save_detector("yolo11n", frames, tmp_path_factory.mktemp("nms"))


def predict(model: Any, source: Any, **settings: Any) -> list[Any]:
    yolo = model if isinstance(model, YOLO) else YOLO(model)
    return yolo.predict(source, **{"imgsz": WIDTH, "conf": CONF, "device": "cpu", "verbose": False, **settings})


def shown(result: Any) -> np.ndarray:
    """Boxes, scores and classes of a result, in the order of the boxes."""
    boxes = result.boxes.cpu().numpy()
    return in_order(np.column_stack((boxes.xyxy, boxes.conf, boxes.cls)))


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.round(2).T[::-1])]


def pixels(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    left, top, right, bottom = box.astype(int)
    return image[top:bottom, left:right, ::-1].transpose(2, 0, 1) / 255
