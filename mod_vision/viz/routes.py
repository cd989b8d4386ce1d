"""The routes of an image: which of its patches each routed layer computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.yolo.images import Letterboxed, forward_letterboxed, load_model


class RouteMap(NamedTuple):
    """What one routed layer did with an image of which the letterbox padding is cropped.

    Attributes:
        name: Name of the layer, such as 'model.6'.
        kept: (H_s, W_s) bool, the patches that the layer computed.
        score: (H_s, W_s) float32, the router's scores.
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


def route_maps(model: Any, image: str | Path | np.ndarray, imgsz: int = 640) -> list[RouteMap]:
    """Run the model on an image and return the map of each routed layer, in forward order.

    Layers at capacity 1 route nothing and have no map.

    Args:
        model: A `YOLO` object, a .pt file, or a model YAML.
        image: A file, or a uint8 array (H, W, 3) in BGR or (H, W) in gray.
        imgsz: Longer side of the model's input.

    Raises:
        FileNotFoundError: If model or image does not exist.
        ValueError: If the image cannot be read, or the model routes nothing.
    """
    model = load_model(model)
    boxed = forward_letterboxed(model, read_image(image), imgsz)
    maps = [_crop(name, layer, boxed) for name, layer in routed_layers(model.model) if not layer.dense]
    if not maps:
        raise ValueError("nothing is routed: no routed layer, or capacity 1.")
    return maps


def read_image(image: str | Path | np.ndarray) -> np.ndarray:
    """Return an image file or array as BGR (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is no image, or the array is not uint8 of shape (H, W), (H, W, 1) or (H, W, 3).
    """
    if not isinstance(image, np.ndarray):
        return _decode(Path(image))
    gray = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if image.dtype != np.uint8 or not image.size or not (gray or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"an image array must be uint8, BGR or gray, got {image.dtype} of shape {image.shape}.")
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if gray else image


def _decode(path: Path) -> np.ndarray:
    """Read an image file; its bytes are read by Python, which knows paths that OpenCV does not on all systems."""
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist.")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path} is not an image that can be read.")
    return image


def _crop(name: str, layer: RoutedLayer, boxed: Letterboxed) -> RouteMap:
    """Return the map of a layer without the patches whose centre lies in the padding."""
    plan, depth = layer.plan, layer.depth_map()
    if plan is None or depth is None:
        raise ValueError(f"{name} did not run in the forward of the model, so it has no route.")
    top, left, height, width = boxed.valid
    rows, y, share_y = _inside(plan.size[0], boxed.size[0], top, height)
    cols, x, share_x = _inside(plan.size[1], boxed.size[1], left, width)
    grids = (plan.kept(), plan.to_map(plan.logits.float()), depth)
    kept, score, passed = (grid[0, rows, cols].cpu().numpy() for grid in grids)
    return RouteMap(name, kept, score, passed, layer.depth, (y, x, share_y, share_x))


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
