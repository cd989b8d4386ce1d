"""What a model found, drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mod_vision.text import printable
from mod_vision.viz.layout import ink_on
from mod_vision.viz.lettering import line_height, put_text, text_size_for, text_width
from mod_vision.yolo.run.predict import class_colour

LETTERS = 40  # of the name of a class


def draw_results(scene: np.ndarray, result: Any) -> np.ndarray:
    """Draw the edges of masks, boxes, class names and confidences on a picture; a tint would change the map below.

    Args:
        scene: (H, W, 3) uint8 in BGR, the image of the result at any scale; it is drawn on.
        result: Ultralytics' `Results` of a detector or segmenter.

    Returns:
        The scene.
    """
    height, width = result.orig_shape
    scale = np.array([scene.shape[1] / width, scene.shape[0] / height])
    classes, confs = result.boxes.cls.int().tolist(), result.boxes.conf.tolist()
    outlines = result.masks.xy if result.masks else []
    px = text_size_for(scene)
    line = round(px / 8)
    for outline, c in zip(outlines, classes[: len(outlines)], strict=True):
        if len(outline):
            _edge(scene, (outline * scale).round().astype(np.int32), class_colour(c), line)
    corners = (result.boxes.xyxy.cpu().numpy().reshape(-1, 2, 2) * scale).round().astype(int)
    for box, c in zip(corners.tolist(), classes, strict=True):
        cv2.rectangle(scene, box[0], box[1], class_colour(c), line)
    for box, c, conf in reversed(list(zip(corners, classes, confs, strict=True))):  # the best ones on top
        _label(scene, f"{printable(result.names[c], LETTERS)} {conf:.2f}", box[0], class_colour(c), px)
    return scene


def _edge(scene: np.ndarray, outline: np.ndarray, colour: Sequence[int], line: int) -> None:
    """Draw the edge of what lies in an outline (n, 2) of x, y, which also has lines that join its parts."""
    left, top = outline.min(axis=0).clip(0)
    right, bottom = outline.max(axis=0) + 1
    part = scene[top:bottom, left:right]
    if not part.size:  # a sliver beyond the border
        return
    mask = np.zeros(part.shape[:2], np.uint8)
    cv2.fillPoly(mask, [outline - (left, top)], 1)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    edges, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(int(left), int(top)))
    cv2.drawContours(scene, edges, -1, tuple(colour), line, cv2.LINE_AA)


def _label(scene: np.ndarray, text: str, corner: np.ndarray, colour: Sequence[int], px: int) -> None:
    """Write a text on a box of its own, above a corner (x, y) where there is room, and always within the scene."""
    width, height = text_width(text, px) + px // 2, line_height(px)
    left = int(np.clip(corner[0], 0, max(scene.shape[1] - width, 0)))
    top = int(corner[1]) - height if corner[1] >= height else max(int(corner[1]), 0)
    scene[top : top + height, left : left + width] = colour
    put_text(scene, text, left + px // 4, top, px, ink_on(colour))
