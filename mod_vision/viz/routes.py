"""The routes of an image: which of its patches each routed layer computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mod_vision.viz.traced import Trace, TracedLayer, open_traced
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import Letterboxed


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
    """

    name: str
    kept: np.ndarray
    score: np.ndarray
    depth: np.ndarray
    blocks: int
    extent: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


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
    return RouteMap(layer.name, kept, score, passed, layer.blocks, (y, x, share_y, share_x))


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
