"""What a model found, drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mod_vision.text import printable
from mod_vision.viz.layout import ink_on
from mod_vision.viz.lettering import line_height, put_text, text_size_for, text_width
from mod_vision.yolo.run.predict import class_colour

LETTERS = 40  # of the name of a class
LABELLED = 0.2  # share of a picture that labels hide at most, beside the numbers of windows


class Place(NamedTuple):
    """Where a label is, in rows and columns of a picture."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def meets(self, other: Place) -> bool:
        """Return whether it hides a part of another."""
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )


def draw_results(scene: np.ndarray, result: Any) -> np.ndarray:
    """Draw the edges of masks, boxes, class names and confidences on a picture; a tint would change the map below.

    What was found some frames before, and stands, is told by their number.

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
    taken: list[Place] = []
    ages = getattr(result, "ages", [0] * len(classes))  # of what stands before a still camera
    for box, c, conf, age in zip(corners.tolist(), classes, confs, ages, strict=True):  # the best ones first
        text = f"{printable(result.names[c], LETTERS)} {conf:.2f}{f', {age} ago' if age else ''}"
        place = _place(scene, box, (line_height(px), text_width(text, px) + px // 2), taken)
        if place is not None:
            taken.append(place)
            _label(scene, text, place, class_colour(c), px)
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


def _place(
    scene: np.ndarray, box: Sequence[Sequence[int]], size: tuple[int, int], taken: Sequence[Place]
) -> Place | None:
    """Return where a label hides no other and not too much: above its box or below it, within the scene; else None.

    Args:
        scene: (H, W, 3).
        box: Upper left and lower right corner (x, y) of what it belongs to.
        size: Height and width of the label.
        taken: Where other labels are.
    """
    (x, y), (_, bottom) = box
    rows, cols = scene.shape[:2]
    room = LABELLED * rows * cols - sum(place.area for place in taken)
    left = min(max(x, 0), max(cols - size[1], 0))
    for top in (y - size[0] if y >= size[0] else max(y, 0), bottom):
        place = Place(top, left, top + size[0], min(left + size[1], cols))
        if place.bottom <= rows and place.area <= room and not any(map(place.meets, taken)):
            return place
    return None


def _label(scene: np.ndarray, text: str, place: Place, colour: Sequence[int], px: int) -> None:
    """Write a text on a rectangle of a colour."""
    scene[place.top : place.bottom, place.left : place.right] = colour
    put_text(scene, text, place.left + px // 4, place.top, px, ink_on(colour))
