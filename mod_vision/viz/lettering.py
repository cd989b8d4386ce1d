"""Text on pictures, in one font at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mod_vision.text import printable

INK = (40, 40, 40)
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
LONGEST = 500  # letters of a line
SMALLEST = 13  # pixels, still readable


@cache
def _font(px: int) -> ImageFont.FreeTypeFont:
    """Load the font."""
    return ImageFont.truetype(FONT, px)


def text_size_for(picture: np.ndarray) -> int:
    """Return the size in pixels of the text that belongs to a picture (H, W, 3): it grows with the picture."""
    return max(SMALLEST, round(0.022 * math.sqrt(picture.shape[0] * picture.shape[1])))


def line_height(px: int) -> int:
    """Return the height of a line of text of `px` pixels."""
    return math.ceil(1.5 * px)


def text_width(text: str, px: int) -> int:
    """Return the width of a line of text in pixels."""
    return math.ceil(_font(px).getlength(printable(text, LONGEST))) + 1


def put_text(picture: np.ndarray, text: str, left: int, top: int, px: int, colour: Sequence[int] = INK) -> None:
    """Write a line of text into `line_height(px)` pixels below `top`.

    Args:
        picture: (H, W, 3) uint8 in BGR, which is drawn on.
        text: The text.
        left: First pixel column.
        top: First pixel row.
        px: Size of the text.
        colour: In BGR.
    """
    part = picture[top : top + line_height(px), left : left + text_width(text, px)]
    canvas = Image.fromarray(np.ascontiguousarray(part))  # PIL takes it for RGB, which changes nothing
    place = (0, part.shape[0] / 2)
    ImageDraw.Draw(canvas).text(
        place, printable(text, LONGEST), fill=tuple(map(int, colour)), font=_font(px), anchor="lm"
    )
    part[:] = canvas
