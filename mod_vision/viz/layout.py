"""What stands below a picture: legends, captions and curves, from left to right and in as many rows as they need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mod_vision.viz.lettering import INK, line_height, put_text, text_width

WHITE = (255, 255, 255)


def blank(height: int, width: int) -> np.ndarray:
    """Return a white picture (height, width, 3)."""
    return np.full((height, width, 3), WHITE, np.uint8)


def paste(page: np.ndarray, picture: np.ndarray, top: int, left: int = 0) -> None:
    """Put a picture (h, w, 3) on a page, its upper left corner at a row and a column."""
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def ink_on(colour: Sequence[int] | np.ndarray) -> tuple[int, int, int]:
    """Return the colour of text that is readable on a colour (3,), both in BGR."""
    return INK if np.dot(colour, (0.114, 0.587, 0.299)) > 120 else WHITE


def caption(lines: Sequence[str], px: int) -> np.ndarray:
    """Write lines of text; it is as wide for any percentage or number of windows, so that frames of a video agree."""
    widest = [re.sub(r"\b(no|\d+) windows?\b", "999 windows", re.sub(r"\d+%", "100%", line)) for line in lines]
    width = max(text_width(line, px) for line in widest)
    block = blank(len(lines) * line_height(px), width)
    for number, line in enumerate(lines):
        put_text(block, line, 0, number * line_height(px), px)
    return block


def swatches(title: str, palette: Mapping[Any, np.ndarray], px: int) -> np.ndarray:
    """Draw a legend of what has a colour each: a swatch for each, with as many names as there is room for.

    Args:
        title: The line above.
        palette: Name or number and colour (3,) of each.
        px: Size of the text.
    """
    names = [str(name) for name in palette]
    widest = max(text_width(name, px) for name in names)
    swatch = max(round(1.6 * px), widest + px // 2) if len(names) <= 12 else px // 2
    step = -(-widest // swatch)  # names closer than that would touch
    bar = np.repeat(np.array([list(palette.values())], np.uint8), swatch, axis=1).repeat(line_height(px), axis=0)
    last = len(names) - 1
    places = [*(place for place in range(0, last, step) if last - place >= step), last]
    return _legend(title, bar, [(names[place], (place + 0.5) * swatch) for place in places], px)


def gradient(title: str, palette: np.ndarray, px: int) -> np.ndarray:
    """Draw a legend of a continuous scale from 0 to 1 with `palette` (n, 3)."""
    width = 12 * px
    bar = palette[np.linspace(0, len(palette) - 1, width).round().astype(int)][None].repeat(line_height(px), axis=0)
    return _legend(title, bar, [("0", px), ("0.5", width / 2), ("1", width - px)], px)


def _legend(title: str, bar: np.ndarray, marks: Sequence[tuple[str, float]], px: int) -> np.ndarray:
    """Draw a title, the bar below it, and texts on the bar, each centred at a column."""
    line = line_height(px)
    block = blank(2 * line, max(text_width(title, px), bar.shape[1]))
    put_text(block, title, 0, 0, px)
    paste(block, bar, line)
    for text, centre in marks:
        ink = ink_on(bar[0, min(int(centre), bar.shape[1] - 1)])
        left = round(centre - text_width(text, px) / 2)
        put_text(block, text, min(max(left, 0), block.shape[1] - text_width(text, px)), line, px, ink)
    return block


def with_blocks(picture: np.ndarray, blocks: Sequence[np.ndarray], px: int) -> np.ndarray:
    """Put blocks below a picture, which stays in the upper left corner.

    Args:
        picture: (H, W, 3).
        blocks: Pictures (h, w, 3), from left to right; what does not fit into the width goes into a row below.
        px: Size of the text in them, which the gaps follow.
    """
    gap = px
    rows: list[list[np.ndarray]] = []
    room = 0
    for block in blocks:
        if not rows or block.shape[1] + 2 * gap > room:
            rows.append([])
            room = picture.shape[1] - gap
        rows[-1].append(block)
        room -= block.shape[1] + 2 * gap
    width = max(picture.shape[1], *(block.shape[1] + 2 * gap for block in blocks))
    heights = [max(block.shape[0] for block in row) for row in rows]
    page = blank(picture.shape[0] + gap // 2 + sum(heights) + len(rows) * (gap // 2 + 1) + 1, width)
    paste(page, picture, 0)
    top = picture.shape[0] + gap // 2
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for block in row:
            paste(page, block, top, left)
            left += block.shape[1] + 2 * gap
        top += height + gap // 2 + 1
    return page
