"""Small curves of figures over the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mod_vision.viz.layout import blank, caption, paste
from mod_vision.viz.lettering import line_height, put_text, text_width

LINE, AREA, AXIS = (139, 82, 30), (240, 226, 212), (170, 170, 170)
FINE = 4  # bits of a pixel that OpenCV takes for smooth lines


def curve(title: str, values: Sequence[float], top: float, top_label: str, frames: int, px: int) -> np.ndarray:
    """Draw the last values as a curve from 0 to `top`, below its title.

    Args:
        title: What the curve shows, with its last value.
        values: At least one, at most `frames`.
        top: The upper end of the axis.
        top_label: How it is written.
        frames: How many values the axis has room for.
        px: Size of the text.
    """
    head, line = caption([title], px), line_height(px)
    height, width, gap = 2 * line, 8 * px, px // 2
    block = blank(head.shape[0] + height + line, max(head.shape[1], width + gap + text_width(top_label, px)))
    paste(block, head, 0)
    start = head.shape[0] + line // 2  # half a line above and below: the labels are centred at the ends of the axis
    plot = block[start : start + height, :width]
    shares = np.clip(np.asarray(values) / top, 0, 1)
    points = np.stack((np.arange(len(shares)) / max(frames - 1, 1) * (width - 1), (1 - shares) * (height - 2)), axis=1)
    ends = np.array([[points[-1, 0], height - 1], [0, height - 1]])
    cv2.fillPoly(plot, [_fixed(np.concatenate((points, ends)))], AREA, cv2.LINE_AA, FINE)
    cv2.polylines(plot, [_fixed(points)], False, LINE, max(1, px // 10), cv2.LINE_AA, FINE)
    plot[0] = plot[-1] = AXIS
    put_text(block, top_label, width + gap, head.shape[0], px)
    put_text(block, "0", width + gap, block.shape[0] - line, px)
    return block


def _fixed(points: np.ndarray) -> np.ndarray:
    """Return points (n, 2) as OpenCV takes fractions of pixels."""
    return (points * (1 << FINE)).round().astype(np.int32)
