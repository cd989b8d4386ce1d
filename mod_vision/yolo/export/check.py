"""Does an export keep the routing? Outputs and routed tokens or windows against eager, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mod_vision.routing import routed_layers
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.export.graphs import open_export, run_and_select, tensors

TOLERANCE = 1e-3
FLOOR = 1e-2  # scores are at most 1: what is smaller than this counts as noise


@dataclass
class ExportCheck:
    """Agreement of an export with eager.

    Attributes:
        images: Number of images compared.
        max_error: Largest difference of an output, relative to the largest value of its channel.
        same_indices: Share of routed tokens that both chose, or of windows that both placed alike, 1.0 if the routes
            are identical, None where the format does not show them.
        distinct_routes: Whether two images took different routes, which a route frozen into the graph cannot; None
            where the format does not show them, or eager's do not differ either.
        routed: What is routed.
    """

    images: int
    max_error: float
    same_indices: float | None
    distinct_routes: bool | None
    routed: str = "routed tokens"

    @property
    def same_as_eager(self) -> bool:
        """True if outputs agree within float tolerance and all indices that can be seen agree."""
        return self.max_error < TOLERANCE and self.same_indices in (1.0, None)

    @property
    def passed(self) -> bool:
        """True if the export is the same as eager and its routes depend on the image."""
        return self.same_as_eager and self.distinct_routes is not False

    def __str__(self) -> str:
        """Return the verdict in a line."""
        verdict = "equals eager" if self.same_as_eager else "DIFFERS from eager"
        verdict += f" on {self.images} images: largest relative error {self.max_error:.1e}"
        if self.same_indices is None:
            return f"{verdict}; this format does not show the {self.routed}"
        verdict += f"; {100 * self.same_indices:.2f} % of {self.routed} agree"
        if self.distinct_routes is None:
            return verdict
        return f"{verdict}, routes {'depend on the image' if self.distinct_routes else 'are the SAME for all images'}"


def check_export(
    path: Path, run: Callable[[torch.Tensor], Any], model: nn.Module, images: Sequence[torch.Tensor]
) -> ExportCheck:
    """Compare an export with the eager model.

    Args:
        path: The exported file or folder.
        run: Runs the export on a batch (B, 3, H, W), where its format is not one of those that show their routes.
        model: The fused eager model it was made from, in eval mode.
        images: Batches (B, 3, H, W) of exported sizes.

    Raises:
        ValueError: If there is no image, or the export gives other outputs than eager.
    """
    if not images:
        raise ValueError("an export cannot be checked without images.")
    layers = {name: layer for name, layer in routed_layers(model) if not layer.dense}
    windows = any(isinstance(layer, WindowedLayer) for layer in layers.values())
    export, end2end = open_export(path, list(layers), windows), bool(getattr(model, "end2end", False))
    compare = _same_places if windows else _agreement
    errors, agreed, taken, wanted = [], [], [], []
    for image in images:
        eager, expected = run_and_select(model, image, len(layers), windows)
        if windows:
            expected = [_places(layer.plan) for layer in layers.values()]
        outputs, routes = export(image) if export else (_arrays(run(image)), [])
        errors.append(largest_error(outputs, [tensor.numpy() for tensor in tensors(eager)], end2end))
        agreed += [compare(a, b) for a, b in zip(routes, expected, strict=True)] if export else []
        taken += _routes_by_image(routes)
        wanted += _routes_by_image(expected)
    same = float(np.sum([a for a, _ in agreed]) / np.sum([n for _, n in agreed])) if agreed else None
    distinct = len(set(taken)) > 1 if agreed and len(set(wanted)) > 1 else None
    routed = "windows" if windows else "routed tokens"
    return ExportCheck(sum(len(image) for image in images), max(errors), same, distinct, routed)


def _places(plan: WindowPlan) -> np.ndarray:
    """Return where windows were placed, among all places in raster order, (B, k)."""
    rows, cols = plan.corners.unbind(2)
    return (rows * plan.places[1] + cols).numpy()


def _same_places(placed: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """Return how many of the expected windows (B, k) were placed, in their order, and how many there are."""
    return int((placed == expected).sum()), expected.size


def _agreement(chosen: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """Return how many of the expected places (..., k) were chosen, and how many there are."""
    rows = zip(chosen.reshape(-1, chosen.shape[-1]), expected.reshape(-1, expected.shape[-1]), strict=True)
    return sum(len(set(a.tolist()) & set(b.tolist())) for a, b in rows), expected.size


def _routes_by_image(routes: Sequence[np.ndarray]) -> list[bytes]:
    """Return something that tells the routes of images apart, for each of a batch."""
    images = zip(*(np.sort(layer, axis=-1) for layer in routes), strict=True) if routes else ()
    return [b"".join(np.ascontiguousarray(layer).tobytes() for layer in image) for image in images]


def _arrays(value: Any) -> list[np.ndarray]:
    """Return what one of Ultralytics' backends gives as arrays."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [part if isinstance(part, np.ndarray) else part.numpy() for part in parts]


def largest_error(outputs: Sequence[np.ndarray], eager: Sequence[np.ndarray], end2end: bool) -> float:
    """Return the largest error of the outputs, each against the first of eager's that has its shape.

    An end-to-end head gives detections (B, 300, 6 and more), others (B, channels, anchors).

    Raises:
        ValueError: If an output has no counterpart, or eager's predictions, its first output, are missing.
    """
    by_shape: dict[tuple[int, ...], np.ndarray] = {}
    for array in eager:
        by_shape.setdefault(array.shape, array)
    shapes = [array.shape for array in outputs]
    if eager[0].shape not in shapes or any(shape not in by_shape for shape in shapes):
        raise ValueError(f"the export gives outputs of shape {shapes}, eager {list(by_shape)}.")
    compare = (_rows_difference if end2end and array.ndim == 3 else _difference for array in outputs)
    return max(by(array, by_shape[array.shape]) for by, array in zip(compare, outputs, strict=True))


def _rows_difference(exported: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest difference of detections over the largest value of its column.

    They are sorted by score: rows whose scores differ in the last digit may change places, so each row is compared with
    the nearest one, and rows that tie with the last may be missing.
    """
    scale = np.maximum(np.abs(eager).max(axis=(0, 1)), FLOOR)
    pairs = list(zip(exported / scale, eager / scale, strict=True))
    return max(_farthest(a, b) for a, b in [*pairs, *((b, a) for a, b in pairs)])


def _difference(exported: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest difference over the largest value of its channel: boxes are in pixels, scores below 1."""
    scale = np.maximum(np.abs(eager).max(axis=(0, *range(2, eager.ndim)), keepdims=True), FLOOR)
    return float((np.abs(exported - eager) / scale).max())


def _farthest(detections: np.ndarray, others: np.ndarray) -> float:
    """Return the largest distance of a detection to the nearest of others."""
    scores = detections[:, 4]
    rows = detections[scores > scores[scores > 0].min(initial=1.0) + 1e-5]  # those of 0 were left out by a coarse pass
    rows = rows if len(rows) else detections[:1]
    return max(float(np.abs(others - row).max(axis=1).min()) for row in rows)
