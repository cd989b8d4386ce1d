"""Depth: how many routed blocks each patch of an image passed in all layers together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mod_vision.viz.routes import RouteMap


def total_depth(maps: Sequence[RouteMap]) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Sum the passed blocks of all layers on the finest grid.

    Args:
        maps: Route maps of one image, at least one.

    Returns:
        (H_s, W_s) int, and the extent of the grid as `RouteMap` has it.
    """
    finest = max(maps, key=lambda layer: layer.kept.size)
    top, left, height, width = finest.extent
    rows, cols = finest.kept.shape
    ys = top + (np.arange(rows) + 0.5) / rows * height
    xs = left + (np.arange(cols) + 0.5) / cols * width
    return np.sum([_depth_at(layer, ys, xs) for layer in maps], axis=0), finest.extent


def _depth_at(layer: RouteMap, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Look the depth of a layer up at rows `ys` (h,) and columns `xs` (w,), in shares of the image: (h, w)."""
    (rows, cols), (top, left, height, width) = layer.depth.shape, layer.extent
    y = np.clip(np.floor((ys - top) / height * rows).astype(int), 0, rows - 1)
    x = np.clip(np.floor((xs - left) / width * cols).astype(int), 0, cols - 1)
    return layer.depth[y[:, None], x[None, :]]
