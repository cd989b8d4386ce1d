"""Annotators in the manner of `supervision`: `annotate(scene, maps)` draws on the scene and returns it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from mod_vision.viz.layout import WHITE
from mod_vision.viz.routes import RouteMap, total_depth, total_levels

CMAPS = {"viridis": cv2.COLORMAP_VIRIDIS, "cividis": cv2.COLORMAP_CIVIDIS, "magma": cv2.COLORMAP_MAGMA}
SKIPPED = (80, 50, 40)  # navy, so that a skipped patch differs from a computed one of a dark photo
COVER = 0.8  # opacity of that
OPACITY = 0.6  # of the colours
MIDDLE = 128  # a gray
BAND = 64  # rows painted at a time: what huge images need beside themselves stays small


def colours(count: int, cmap: str = "viridis") -> np.ndarray:
    """Return evenly spaced colours (count, 3), uint8 in BGR, without the dark end of the colour map."""
    levels = np.linspace(88, 255, count).round().astype(np.uint8)[:, None]
    return cv2.applyColorMap(levels, CMAPS[cmap])[:, 0]


def depth_palette(blocks: int, cmap: str = "viridis") -> np.ndarray:
    """Return the colour of each depth from 0 to `blocks`, (blocks + 1, 3) uint8 in BGR: navy, then the colour map."""
    return np.concatenate((np.array([SKIPPED], np.uint8), colours(blocks, cmap)))


class _Coloured:
    """What paints in colours over the scene in gray, so that those of the scene do not mix with those of the map.

    Args:
        cmap: A perceptually uniform colour map: viridis, cividis or magma.
        opacity: Of the colours, in [0, 1].

    Raises:
        ValueError: If the colour map is none of these, or the opacity is not in [0, 1].
    """

    def __init__(self, cmap: str = "viridis", opacity: float = OPACITY) -> None:
        if cmap not in CMAPS:
            raise ValueError(f"cmap must be one of {', '.join(CMAPS)}, got {cmap!r}.")
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be in [0, 1], got {opacity}.")
        self.cmap, self.opacity = cmap, opacity

    def _lookup(self, palette: np.ndarray, opacity: np.ndarray | float) -> np.ndarray:
        """Return what becomes of each gray value under each colour, (colours, 256, 3) uint8.

        The gray is lifted: black would turn the colours into others than the legend's.

        Args:
            palette: (colours, 3).
            opacity: (colours, 1, 1), or one for all.
        """
        gray = (96 + 0.62 * np.arange(256))[:, None]
        return (opacity * palette[:, None] + (1 - opacity) * gray).round().astype(np.uint8)


class DepthAnnotator(_Coloured):
    """Paints how many routed blocks each patch passed in all layers; those that passed none are shaded."""

    def annotate(self, scene: np.ndarray, maps: Sequence[RouteMap]) -> np.ndarray:
        """Draw the depth of an image on a scene; pass `scene=image.copy()` to keep the image.

        Args:
            scene: (H, W, 3) uint8 in BGR, the image at any scale; it is drawn on.
            maps: The route maps of the image.

        Returns:
            The scene.

        Raises:
            ValueError: If there is no map, or the scene is not of this type and shape.
        """
        depth, extent = total_depth(maps)
        grid = Grid(scene, depth, extent)
        grid.paint(self._table(maps))
        grid.outline(SKIPPED)
        return scene

    def legend(self, maps: Sequence[RouteMap]) -> dict[int, np.ndarray]:
        """Return the depths that can occur, and their colours (3,) as they look over a scene of middle gray."""
        table = self._table(maps)
        return {depth: table[depth, MIDDLE] for depth in total_levels(maps)}

    def _table(self, maps: Sequence[RouteMap]) -> np.ndarray:
        """Return what becomes of each gray value at each depth, (depths, 256, 3) uint8."""
        table = self._lookup(self.palette(maps), self.opacity)
        table[0] = shaded()
        return table

    def palette(self, maps: Sequence[RouteMap]) -> np.ndarray:
        """Return the colour of each depth from 0 to all blocks of the layers, (depths, 3) uint8 in BGR."""
        return depth_palette(sum(layer.blocks for layer in maps), self.cmap)


class ConfidenceAnnotator(_Coloured):
    """Paints the confidence of the router of one layer, the sigmoid of its score: the surer, the more opaque."""

    def annotate(self, scene: np.ndarray, layer: RouteMap) -> np.ndarray:
        """Draw the confidence of a layer on a scene; pass `scene=image.copy()` to keep the image.

        Args:
            scene: (H, W, 3) uint8 in BGR, the image at any scale; it is drawn on.
            layer: A route map of the image.

        Returns:
            The scene.

        Raises:
            ValueError: If the scene is not of this type and shape.
        """
        level = np.round(255 / (1 + np.exp(-layer.score.clip(-30, 30)))).astype(int)
        Grid(scene, level, layer.extent).paint(self._table())
        return scene

    def legend(self) -> np.ndarray:
        """Return the colours as they look over a scene of middle gray, (256, 3) uint8 in BGR."""
        return self._table()[:, MIDDLE]

    def _table(self) -> np.ndarray:
        """Return what becomes of each gray value at each confidence, (256, 256, 3) uint8."""
        return self._lookup(self.palette(), self.opacity * np.linspace(0, 1, 256)[:, None, None])

    def palette(self) -> np.ndarray:
        """Return the colours of confidences from 0 to 1, (256, 3) uint8 in BGR."""
        return colours(256, self.cmap)


class SkipAnnotator:
    """Shades the patches that no layer of some maps computed, and outlines the rest, which keeps its colours."""

    def annotate(self, scene: np.ndarray, maps: Sequence[RouteMap]) -> np.ndarray:
        """Draw on a scene what was skipped; pass `scene=image.copy()` to keep the image.

        Args:
            scene: (H, W, 3) uint8 in BGR, the image at any scale; it is drawn on.
            maps: Route maps of the image: all, or `[layer]` for what a single one skipped.

        Returns:
            The scene.

        Raises:
            ValueError: If there is no map, or the scene is not of this type and shape.
        """
        depth, extent = total_depth(maps)
        grid = Grid(scene, depth > 0, extent)
        grid.shade()
        grid.outline(WHITE)
        return scene


class Grid:
    """A grid of labels over a scene.

    Args:
        scene: (H, W, 3) uint8, which is drawn on.
        labels: (rows, columns) int or bool.
        extent: (top, left, height, width) of the grid in shares of the scene. What it does not cover gets the label of
            the nearest cell.

    Raises:
        ValueError: If the scene is not of this type and shape.
    """

    def __init__(self, scene: np.ndarray, labels: np.ndarray, extent: Sequence[float]) -> None:
        if scene.dtype != np.uint8 or scene.ndim != 3 or scene.shape[2] != 3 or not scene.size:
            raise ValueError(f"a scene must be (H, W, 3) uint8 in BGR, got {scene.dtype} of shape {scene.shape}.")
        self.scene, self.labels = scene, labels
        self.rows = _edges(labels.shape[0], extent[0], extent[2], scene.shape[0])
        self.cols = _edges(labels.shape[1], extent[1], extent[3], scene.shape[1])

    def paint(self, lookup: np.ndarray) -> None:
        """Give each pixel the colour that `lookup` (labels, 256, 3) has for its label and gray value."""
        for band, labels in self._bands():
            band[:] = lookup[labels, cv2.cvtColor(band, cv2.COLOR_BGR2GRAY)]

    def shade(self) -> None:
        """Shade the cells whose label is False or 0."""
        lookup = shaded()[None]
        for band, labels in self._bands():
            np.copyto(band, cv2.LUT(band, lookup), where=(labels == 0)[:, None])

    def tint(self, palette: np.ndarray, opacity: float) -> None:
        """Lay a colour of `palette` (n, 3) over the cells of each label; those of label 0 and 1 stay as they are."""
        tints = opacity * palette.astype(np.float32)
        for band, labels in self._bands():
            mixed = (1 - opacity) * band + tints[labels]
            np.copyto(band, mixed.round().astype(np.uint8), where=(labels > 1)[:, None])

    def outline(self, colour: Sequence[int]) -> None:
        """Draw a line where neighbouring cells have different labels; none if cells are too small for it."""
        height, width = self.scene.shape[:2]
        smallest = min(height / self.labels.shape[0], width / self.labels.shape[1])
        line = min(hairline(self.scene), int(smallest / 4))
        if not line:
            return
        before, after = line // 2, line - line // 2
        for row, col in zip(*np.nonzero(self.labels[1:] != self.labels[:-1]), strict=True):
            y, left, right = self.rows[row + 1], self.cols[col], self.cols[col + 1]
            self.scene[y - before : y + after, max(left - before, 0) : right + after] = colour
        for row, col in zip(*np.nonzero(self.labels[:, 1:] != self.labels[:, :-1]), strict=True):
            x, top, bottom = self.cols[col + 1], self.rows[row], self.rows[row + 1]
            self.scene[max(top - before, 0) : bottom + after, x - before : x + after] = colour

    def _bands(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield runs of rows (h, W, 3) within a row of cells, and the label (W,) of each of their columns."""
        for row, (top, bottom) in enumerate(zip(self.rows[:-1], self.rows[1:], strict=True)):
            labels = np.repeat(self.labels[row], np.diff(self.cols))
            for start in range(top, bottom, BAND):
                yield self.scene[start : min(start + BAND, bottom)], labels


def shaded() -> np.ndarray:
    """Return what becomes of each value of a channel where a scene is shaded, (256, 3) uint8."""
    return ((1 - COVER) * np.arange(256)[:, None] + COVER * np.array(SKIPPED)).round().astype(np.uint8)


def hairline(scene: np.ndarray) -> int:
    """Return the width of a line in pixels that is thin on a scene (H, W, 3), however large it is."""
    return max(1, round(math.sqrt(scene.shape[0] * scene.shape[1]) / 700))


def _edges(cells: int, start: float, length: float, pixels: int) -> np.ndarray:
    """Return the first pixel of each cell of an axis, and the end of the last: (cells + 1,) int from 0 to `pixels`."""
    edges = (start + np.arange(cells + 1) / cells * length) * pixels
    edges = np.ceil(edges - 0.5).clip(0, pixels).astype(int)  # a pixel belongs to the cell that its centre lies in
    edges[0], edges[-1] = 0, pixels
    return edges
