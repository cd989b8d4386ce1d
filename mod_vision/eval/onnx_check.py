"""Does an ONNX export keep the routing? Outputs and routed tokens against eager, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mod_vision.routing import routed_layers


@dataclass
class ExportCheck:
    """Agreement of an export with eager.

    Attributes:
        images: Number of images compared.
        max_error: Largest difference of an output, relative to the largest value of that output.
        same_indices: Share of routed tokens that both chose, 1.0 if the routes are identical.
        distinct_routes: Whether two images took different routes, which a route frozen into the graph cannot.
    """

    images: int
    max_error: float
    same_indices: float
    distinct_routes: bool

    @property
    def same_as_eager(self) -> bool:
        """True if outputs agree within float tolerance and all indices agree."""
        return self.max_error < 1e-3 and self.same_indices == 1.0

    @property
    def passed(self) -> bool:
        """True if the export is the same as eager and its routes depend on the image."""
        return self.same_as_eager and self.distinct_routes


def session_with_routes(path: Path, layers: Sequence[str], threads: int | None = None) -> Any:
    """Open an ONNX model so that it also returns the routed indices of each layer, as its last outputs.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If the graph has no top-k selection for a layer: the routing was frozen or lost.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'mod-vision[export]'.") from None
    model = onnx.load(path)
    for layer in layers:
        nodes = [node for node in model.graph.node if node.op_type == "TopK"]
        selections = [node for node in nodes if node.name.replace("/", ".").startswith(f".{layer}.TopK")]
        if not selections:
            raise ValueError(f"{path} has no TopK node for the routed layer {layer}: its routing was not exported.")
        value = onnx.helper.make_tensor_value_info(selections[0].output[1], onnx.TensorProto.INT64, None)
        model.graph.output.append(value)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_onnx(path: Path, model: nn.Module, images: Sequence[torch.Tensor]) -> ExportCheck:
    """Compare an ONNX export with the eager model.

    Args:
        path: ONNX file.
        model: The fused eager model it was made from, in eval mode.
        images: Inputs (1, 3, H, W) of the exported size.
    """
    layers = {name: layer for name, layer in routed_layers(model) if not layer.dense}
    session = session_with_routes(path, list(layers))
    errors, shared, total, routes = [0.0], 0, 0, []
    for image in images:
        outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.inference_mode():
            eager = _tensors(model(image))
        exported, indices = outputs[: len(outputs) - len(layers)], outputs[len(outputs) - len(layers) :]
        errors += [_difference(out, _same_shape(out, eager)) for out in exported]
        for layer, chosen in zip(layers.values(), indices, strict=True):
            assert layer.plan is not None
            expected = set(layer.plan.indices.flatten().tolist())
            shared += len(expected & set(chosen.flatten().tolist()))
            total += len(expected)
        routes.append(np.concatenate([np.sort(chosen.flatten()) for chosen in indices]) if layers else np.zeros(0))
    distinct = any(not np.array_equal(routes[0], other) for other in routes[1:])
    return ExportCheck(len(images), max(errors), shared / total if total else 1.0, distinct)


def _tensors(value: Any) -> list[np.ndarray]:
    """Flatten what a model returns into arrays."""
    if isinstance(value, torch.Tensor):
        return [value.numpy()]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [array for child in children for array in _tensors(child)]


def _same_shape(exported: np.ndarray, eager: list[np.ndarray]) -> np.ndarray:
    """Return the eager output that corresponds to an exported one: the first of its shape."""
    return next(array for array in eager if array.shape == exported.shape)


def _difference(exported: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest difference over the largest value.

    The detections of an end-to-end head are sorted by score: rows whose scores differ in the last digit may change
    places, so each row is compared with the nearest one, and rows that tie with the last may be missing.
    """
    scale = float(np.abs(eager).max()) or 1.0
    detections = exported.ndim == 3 and exported.shape[2] < exported.shape[1]  # (1, 300, 6 and more)
    rows = exported[0][exported[0][:, 4] > exported[0][:, 4].min() + 1e-5] if detections else []
    if not len(rows):
        return float(np.abs(exported - eager).max()) / scale
    distances = [float(np.abs(eager[0] - row).max(axis=1).min()) for row in rows]
    return max(distances, default=0.0) / scale
