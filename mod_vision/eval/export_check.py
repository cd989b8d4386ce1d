"""Does an export keep the routing? Outputs and routed tokens against eager, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mod_vision.eval.exported import open_export
from mod_vision.routing import routed_layers


@dataclass
class ExportCheck:
    """Agreement of an export with eager.

    Attributes:
        images: Number of images compared.
        max_error: Largest difference of an output, relative to the largest value of that output.
        same_indices: Share of routed tokens that both chose, 1.0 if the routes are identical, None where the format
            does not show them.
        distinct_routes: Whether two images took different routes, which a route frozen into the graph cannot; None
            where the format does not show them.
    """

    images: int
    max_error: float
    same_indices: float | None
    distinct_routes: bool | None

    @property
    def same_as_eager(self) -> bool:
        """True if outputs agree within float tolerance and all indices that can be seen agree."""
        return self.max_error < 1e-3 and self.same_indices in (1.0, None)

    @property
    def passed(self) -> bool:
        """True if the export is the same as eager and its routes depend on the image."""
        return self.same_as_eager and self.distinct_routes is not False

    def __str__(self) -> str:
        """Return the verdict in a line."""
        verdict = "equals eager" if self.same_as_eager else "DIFFERS from eager"
        if self.distinct_routes is None:
            routes = "this format does not show which tokens are routed"
        else:
            routes = "routes follow the image" if self.distinct_routes else "routes are the SAME for all images"
            routes += f", {100 * (self.same_indices or 0.0):.2f} % of routed tokens agree"
        return f"{verdict} on {self.images} images: largest relative error {self.max_error:.1e}; {routes}"


def check_export(
    path: Path, run: Callable[[torch.Tensor], Any], model: nn.Module, images: Sequence[torch.Tensor]
) -> ExportCheck:
    """Compare an export with the eager model.

    Args:
        path: The exported file or folder.
        run: Runs the export on a batch (B, 3, H, W), where its format is not one of those that show their routes.
        model: The fused eager model it was made from, in eval mode.
        images: Batches (B, 3, H, W) of an exported size.
    """
    layers = {name: layer for name, layer in routed_layers(model) if not layer.dense}
    export = open_export(path, list(layers))
    errors, agreed, taken = [0.0], [], []
    for image in images:
        with torch.inference_mode():
            eager = _tensors(model(image))
        expected = [layer.plan.indices.numpy() for layer in layers.values() if layer.plan is not None]
        outputs, routes = export(image) if export else (_tensors(run(image)), None)
        errors += [_difference(out, _same_shape(out, eager)) for out in outputs]
        if routes:
            agreed += [_agreement(a, b) for a, b in zip(routes, expected, strict=True)]
            taken += [tuple(tuple(sorted(r[i])) for r in routes) for i in range(len(image))]
    seen = bool(agreed)
    return ExportCheck(
        sum(len(image) for image in images),
        max(errors),
        float(np.sum([a for a, _ in agreed]) / np.sum([n for _, n in agreed])) if seen else None,
        len(set(taken)) > 1 if seen else None,
    )


def _agreement(chosen: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """Return how many of the expected indices (B, k) were chosen, and how many there are."""
    return sum(len(set(a) & set(b)) for a, b in zip(chosen.tolist(), expected.tolist(), strict=True)), expected.size


def _tensors(value: Any) -> list[np.ndarray]:
    """Flatten what a model returns into arrays."""
    if isinstance(value, torch.Tensor):
        return [value.numpy()]
    if isinstance(value, np.ndarray):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [array for child in children for array in _tensors(child)]


def _same_shape(exported: np.ndarray, eager: list[np.ndarray]) -> np.ndarray:
    """Return the eager output that corresponds to an exported one: the first of its shape.

    Raises:
        ValueError: If there is none.
    """
    for array in eager:
        if array.shape == exported.shape:
            return array
    raise ValueError(f"the export has an output of shape {exported.shape}, eager has {[a.shape for a in eager]}.")


def _difference(exported: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest difference over the largest value.

    The detections of an end-to-end head are sorted by score: rows whose scores differ in the last digit may change
    places, so each row is compared with the nearest one, and rows that tie with the last may be missing.
    """
    scale = float(np.abs(eager).max()) or 1.0
    if exported.ndim == 3 and exported.shape[2] < exported.shape[1]:  # (B, 300, 6 and more)
        return max(_row_difference(a, b) for a, b in zip(exported, eager, strict=True)) / scale
    return float(np.abs(exported - eager).max()) / scale


def _row_difference(exported: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest distance of a detection to the nearest one of eager's."""
    rows = exported[exported[:, 4] > exported[:, 4].min() + 1e-5]
    if not len(rows):
        return float(np.abs(exported - eager).max())
    return max(float(np.abs(eager - row).max(axis=1).min()) for row in rows)
