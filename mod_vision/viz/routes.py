"""The routes of an image: which of its patches each routed layer computed, or which windows a network ran on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mod_vision.routing.windows import WindowPlan
from mod_vision.viz.traced import Trace, TracedLayer, open_traced
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import Letterboxed

SHADES = 3  # windows of a cell that have colours of their own in all images: more are rare


class Windows(NamedTuple):
    """The windows of an image that a network ran on, in the order in which they were placed.

    Attributes:
        boxes: (k, 4) float, top, left, height and width of each in shares of the image, maybe beyond it.
        size: Height and width of a window in px of the model's input.
        counts: (H_s, W_s) int, by how many windows each cell was computed.
        coarse: Share of its side at which the whole image was run besides; 0 if it was not.
        zone: (GRID, GRID) bool, squares of the image that the windows were to cover; None for all.
        by_score: Whether scores of a learned router placed them, so that the best ones come first.
    """

    boxes: np.ndarray
    size: tuple[int, int]
    counts: np.ndarray
    coarse: float = 0.0
    zone: np.ndarray | None = None
    by_score: bool = False

    @property
    def besides(self) -> str | None:
        """Return in words what the network ran on besides, None if the windows are all."""
        return f"the whole image at 1/{round(1 / self.coarse)} of its side" if self.coarse else None

    @property
    def most(self) -> int:
        """By how many windows a cell was computed at most."""
        return int(self.counts.max())

    @property
    def overlap(self) -> float:
        """Share of the cells that more than one window computed."""
        return float((self.counts > 1).mean())

    def told(self) -> str:
        """Return number and size in words, such as '3 windows of 192 px'."""
        height, width = self.size
        side = f"{width} px" if height == width else f"{width} x {height} px"
        count = len(self.boxes)
        return f"{count} window{'s' * (count != 1)} of {side}" if count else f"no window of {side}"


class RouteMap(NamedTuple):
    """What one routed layer did with an image of which the letterbox padding is cropped.

    Attributes:
        name: Name of the layer, such as 'model.6'.
        kept: (H_s, W_s) bool, the patches that the layer computed.
        score: (H_s, W_s) float32, the router's scores; their sigmoid is its confidence that a patch matters.
        depth: (H_s, W_s) int, how many blocks of the layer each patch passed.
        blocks: Number of blocks of the layer.
        extent: (top, left, height, width) of the grid in shares of the image. Patches at the border can reach into the
            padding or stop short of it, so this is only about (0, 0, 1, 1).
        windows: The windows, where the layer routes those: its patches are cells then. None of any other.
        levels: The depths that can occur; empty for all up to `blocks`.
        stride: Side of a patch in px of the model's input, 0 if that is not known.
        trained: False if the router was never trained.
    """

    name: str
    kept: np.ndarray
    score: np.ndarray
    depth: np.ndarray
    blocks: int
    extent: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    windows: Windows | None = None
    levels: tuple[int, ...] = ()
    stride: int = 0
    trained: bool = True


def route_maps(model: Any, image: Any, imgsz: int = 640) -> list[RouteMap]:
    """Run the model on an image and return the map of each routed layer, in forward order.

    Layers at capacity 1 route nothing and have no map.

    Args:
        model: A `YOLO` object, a .pt file, a model YAML, or an ONNX export.
        image: A file, a PIL image, or a uint8 or uint16 array (H, W), (H, W, 3) in BGR or (H, W, 4) in BGRA.
        imgsz: Longer side of the model's input; ONNX exports of a fixed size keep theirs.

    Raises:
        FileNotFoundError: If model or image does not exist.
        ValueError: If the image cannot be read, the model does not show what it routes, or routes nothing.
    """
    return crop_maps(open_traced(model, imgsz).trace(read_image(image)))


def crop_maps(trace: Trace) -> list[RouteMap]:
    """Return the maps of an image that was run, without the patches whose centre lies in the padding."""
    return [_crop(layer, trace.forward.boxed) for layer in trace.layers]


def windows_of(maps: Sequence[RouteMap]) -> Windows | None:
    """Return the windows of an image, None of a model that does not run on windows: which it does alone, or not."""
    return maps[0].windows if maps else None


def stage_titles(maps: Sequence[RouteMap]) -> list[str]:
    """Return what a picture calls each layer: 'P4 stage' at 1/16 of the input, numbered if there are several."""
    titles = [f"P{layer.stride.bit_length() - 1} stage" if layer.stride else layer.name for layer in maps]
    numbers = [titles[:place].count(title) + 1 for place, title in enumerate(titles)]
    return [f"{t} {number}" if titles.count(t) > 1 else t for t, number in zip(titles, numbers, strict=True)]


def total_levels(maps: Sequence[RouteMap]) -> list[int]:
    """Return the depths that can occur in all layers together, in ascending order."""
    sums = {0}
    for layer in maps:
        sums = {before + own for before in sums for own in layer.levels or range(layer.blocks + 1)}
    return sorted(sums)


def by_windows(layer: RouteMap) -> RouteMap:
    """Return the map of a layer that routes windows with the number of windows of each cell as its depth."""
    windows = layer.windows
    if windows is None:
        raise ValueError(f"{layer.name} routes tokens, there are no windows to draw.")
    levels = tuple(range(windows.most + 1))
    return layer._replace(depth=windows.counts, blocks=max(windows.most, SHADES), levels=levels)


def skipped_share(layer: RouteMap) -> float:
    """Return the share of patches that the layer did not compute."""
    return 1.0 - float(layer.kept.mean())


def skipped_depth(maps: Sequence[RouteMap]) -> float:
    """Return the share of the blocks of all layers that the patches did not pass, in [0, 1]."""
    most = sum(layer.blocks for layer in maps)
    return 1.0 - sum(float(layer.depth.mean()) for layer in maps) / most


def total_depth(maps: Sequence[RouteMap]) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Sum the passed blocks of all layers on the finest grid.

    Args:
        maps: Route maps of one image.

    Returns:
        (H_s, W_s) int, and the extent of the grid as `RouteMap` has it.

    Raises:
        ValueError: If there is no map.
    """
    if not maps:
        raise ValueError("there is no route map to draw.")
    finest = max(maps, key=lambda layer: layer.kept.size)
    top, left, height, width = finest.extent
    rows, cols = finest.kept.shape
    ys = top + (np.arange(rows) + 0.5) / rows * height
    xs = left + (np.arange(cols) + 0.5) / cols * width
    return np.sum([_depth_at(layer, ys, xs) for layer in maps], axis=0), finest.extent


def _crop(layer: TracedLayer, boxed: Letterboxed) -> RouteMap:
    """Return the map of a layer without the patches whose centre lies in the padding."""
    plan = layer.plan
    top, left, height, width = boxed.valid
    rows, y, share_y = _inside(plan.size[0], boxed.size[0], top, height)
    cols, x, share_x = _inside(plan.size[1], boxed.size[1], left, width)
    grids = (plan.kept(), plan.to_map(plan.logits.float()), layer.passed)
    kept, score, passed = (grid[0, rows, cols].cpu().numpy() for grid in grids)
    windows = _windows(layer, plan, boxed, rows, cols) if isinstance(plan, WindowPlan) else None
    extent, stride = (y, x, share_y, share_x), boxed.size[0] // plan.size[0]
    return RouteMap(layer.name, kept, score, passed, layer.blocks, extent, windows, layer.levels, stride, layer.trained)


def _windows(layer: TracedLayer, plan: WindowPlan, boxed: Letterboxed, rows: slice, cols: slice) -> Windows:
    """Return the windows of an image, and by how many of them the cells in it, of some rows and columns, were computed.

    Args:
        layer: The layer.
        plan: Its plan.
        boxed: Where the image lies in the input.
        rows: Rows of cells that lie in the image.
        cols: Columns of cells that do.
    """
    top, left, height, width = boxed.valid
    size = plan.window[0] * plan.cell, plan.window[1] * plan.cell
    boxes = plan.rectangles(0).cpu().numpy() * plan.cell - (top, left, 0, 0)
    boxes = boxes / (height, width, height, width)
    zone = None if layer.zone is None else layer.zone.cpu().numpy()
    counts = plan.covered()[0, rows, cols].cpu().numpy()
    return Windows(boxes, size, counts, layer.coarse, zone, layer.by_score)


def _inside(cells: int, pixels: int, start: int, length: int) -> tuple[slice, float, float]:
    """Find the cells of one axis whose centre lies in the valid run of pixels.

    Args:
        cells: Number of cells on the axis.
        pixels: Number of input pixels they cover.
        start: First valid pixel.
        length: Number of valid pixels.

    Returns:
        The cells, and their start and length in shares of the valid run. An image thinner than half a cell gets the
        nearest one.
    """
    cell = pixels / cells
    centres = (np.arange(cells) + 0.5) * cell
    found = np.flatnonzero((centres >= start) & (centres < start + length))
    if not found.size:
        found = np.abs(centres - (start + length / 2)).argmin(keepdims=True)
    first, stop = int(found[0]), int(found[-1]) + 1
    return slice(first, stop), (first * cell - start) / length, (stop - first) * cell / length


def _depth_at(layer: RouteMap, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Look the depth of a layer up at rows `ys` (h,) and columns `xs` (w,), in shares of the image: (h, w)."""
    (rows, cols), (top, left, height, width) = layer.depth.shape, layer.extent
    y = np.clip(np.floor((ys - top) / height * rows).astype(int), 0, rows - 1)
    x = np.clip(np.floor((xs - left) / width * cols).astype(int), 0, cols - 1)
    return layer.depth[y[:, None], x[None, :]]
