"""A page of panels, each below its caption: stacks of them in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mod_vision.viz.layout import blank, caption, paste
from mod_vision.viz.lettering import line_height

PANEL_HEIGHT = 360
MAX_PANEL_WIDTH = 1080  # a panorama gets a lower panel instead of a wider one
TEXT = 18
GAP = TEXT
PAGE_RATIO = 1.8  # width to height that the grid of panels comes close to


def fit_panel(image: np.ndarray) -> np.ndarray:
    """Scale an image (H, W, 3) to the height of a panel, or to its greatest width."""
    return fit_into(image, MAX_PANEL_WIDTH, PANEL_HEIGHT)


def fit_into(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale an image (H, W, 3) to the largest size within `width` and `height` pixels."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def panel_grid(stacks: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Lay stacks of captions and panels (h, w, 3) out in a grid; all panels are of one size, all stacks as high."""
    height, photo_width = stacks[0][0][1].shape[:2]
    step = line_height(TEXT) + height + GAP
    titles = [[caption([title], TEXT) for title, _ in stack] for stack in stacks]
    width = max(photo_width, *(title.shape[1] for stack in titles for title in stack)) + GAP
    columns = _columns(len(stacks), width, len(stacks[0]) * step)
    rows = math.ceil(len(stacks) / columns)
    page = blank(GAP // 2 + rows * len(stacks[0]) * step, GAP + columns * width)
    for number, stack in enumerate(stacks):
        left = GAP + number % columns * width
        for place, (_, panel) in enumerate(stack):
            top = GAP // 2 + (number // columns * len(stack) + place) * step
            title = titles[number][place]
            paste(page, title, top, left)
            paste(page, panel, top + title.shape[0], left)
    return page


def _columns(stacks: int, width: int, height: int) -> int:
    """Return the number of columns that brings the grid closest to the ratio of a page; half-empty rows count."""

    def distance(columns: int) -> float:
        rows = math.ceil(stacks / columns)
        return abs(math.log(columns * width / (rows * height) / PAGE_RATIO)) + (rows * columns - stacks) / stacks

    return min(range(1, stacks + 1), key=distance)
