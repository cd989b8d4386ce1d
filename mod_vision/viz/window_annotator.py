"""Windows on a picture: what the network saw in its colours, the rest shaded, a border around each window."""

from __future__ import annotations

import cv2
import numpy as np

from mod_vision.viz.annotators import MIDDLE, Grid, depth_palette, hairline
from mod_vision.viz.layout import WHITE
from mod_vision.viz.lettering import INK, line_height, put_text, text_size_for, text_width
from mod_vision.viz.routes import SHADES, RouteMap, Windows, by_windows

TINT = 0.45  # opacity of the colour on cells of several windows
NUMBERED = 12  # windows; the numbers of more would hide the photo
ROOM = 3  # times as wide and high as its number a window is at least
ZONE = (37, 231, 253)  # yellow, the bright end of the colour map
WHOLE = (0.0, 0.0, 1.0, 1.0)


class WindowAnnotator:
    """Shades the cells that no window computed, tints those that several did, and draws and numbers the windows.

    Args:
        cmap: A perceptually uniform colour map: viridis, cividis or magma.
        tint: Whether cells that several windows computed are tinted.
    """

    def __init__(self, cmap: str = "viridis", tint: bool = True) -> None:
        self.cmap, self.tint = cmap, tint

    def annotate(self, scene: np.ndarray, layer: RouteMap) -> np.ndarray:
        """Draw the windows of an image on a scene; pass `scene=image.copy()` to keep the image.

        Args:
            scene: (H, W, 3) uint8 in BGR, the image at any scale; it is drawn on.
            layer: The route map of the image.

        Returns:
            The scene.

        Raises:
            ValueError: If the layer has no windows, or the scene is not of this type and shape.
        """
        counted = by_windows(layer)
        self._paint(Grid(scene, counted.depth, layer.extent), counted.blocks)
        assert layer.windows is not None
        draw_windows(scene, layer.windows)
        if layer.windows.zone is not None:  # on top, where it is the edge of a window too
            draw_zone(scene, layer.windows.zone)
        return scene

    def legend(self, most: int) -> dict[int, np.ndarray]:
        """Return how cells of 0 to `most` windows look over a scene of middle gray, colours (3,) in BGR."""
        cells = np.full((1, most + 1, 3), MIDDLE, np.uint8)
        self._paint(Grid(cells, np.arange(most + 1)[None], WHOLE), max(most, SHADES))
        return dict(enumerate(cells[0]))

    def _paint(self, grid: Grid, colours: int) -> None:
        """Shade and tint cells by their labels, of which `colours` have one."""
        if self.tint:
            grid.tint(depth_palette(colours, self.cmap), TINT)
        grid.shade()


def draw_windows(scene: np.ndarray, windows: Windows) -> None:
    """Draw a hairline around each window, and its number into its lower left corner; the first ones on top."""
    line, sides = hairline(scene), np.array([scene.shape[0], scene.shape[1]] * 2)
    ends = np.concatenate((windows.boxes[:, :2], windows.boxes[:, :2] + windows.boxes[:, 2:]), 1) * sides
    corners = np.ceil(ends - 0.5).clip(0, sides).astype(int)
    for colour, inset in ((INK, 0), (WHITE, line)):  # side by side: readable on what is bright and on what is dark
        for top, left, bottom, right in corners[::-1].tolist():
            if bottom - top > 4 * line and right - left > 4 * line:  # more of it than its border is in the picture
                start, end = inset + line // 2, inset + (line + 1) // 2
                cv2.rectangle(scene, (left + start, top + start), (right - end, bottom - end), colour, line)
    if len(corners) <= NUMBERED:
        for number, (top, left, bottom, right) in reversed(list(enumerate(corners.tolist(), 1))):
            _number(scene[top:bottom, left:right], number, text_size_for(scene))


def draw_zone(scene: np.ndarray, zone: np.ndarray) -> None:
    """Draw the edge of a zone (GRID, GRID) of squares of the picture on a scene (H, W, 3), which also lies inside."""
    size, line = scene.shape[1::-1], hairline(scene)
    mask = cv2.resize(zone.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for colour, width in ((INK, 3 * line), (ZONE, line)):
        cv2.drawContours(scene, edges, -1, colour, width)


def _number(window: np.ndarray, number: int, px: int) -> None:
    """Write a number into the lower left corner of a window (h, w, 3), if there is room."""
    width, height = text_width(str(number), px) + px // 2, line_height(px)
    if window.shape[0] >= ROOM * height and window.shape[1] >= ROOM * width:
        corner = window[-height:, :width]
        corner[:] = WHITE
        put_text(corner, str(number), px // 4, 0, px)
