"""Exported models as functions that also tell what they route: the indices that their own graphs select."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mod_vision.yolo.export.ranking import is_window, onnx_ranking

Runner = Callable[[torch.Tensor], tuple[list[np.ndarray], list[np.ndarray]]]  # outputs, and what each layer selects


def open_export(path: Path, layers: Sequence[str], windows: bool = False) -> Runner | None:
    """Return a function from a batch (B, 3, H, W) to the outputs and what each layer selects, (B, k).

    With attention in windows it is (B, windows, k), places within the window. A layer that routes windows selects where
    they are placed, among all places in raster order.

    Args:
        path: An ONNX or TorchScript file, or an OpenVINO folder.
        layers: Names of the routed layers.
        windows: Whether the one layer routes windows.

    Returns:
        The function, which computes in float32, or None for formats whose graphs cannot be asked for a value inside.

    Raises:
        ImportError: If the format's runtime is not installed.
        ValueError: If the graph has no selection for a layer: the routing was frozen or lost.
    """
    if path.suffix == ".onnx":
        return _onnx_runner(path, layers, windows)
    if path.suffix == ".torchscript":
        return _torchscript_runner(path, layers, windows)
    if path.is_dir() and list(path.glob("*.xml")):
        return _openvino_runner(path, layers, windows)
    return None


def onnx_session(
    path: Path, layers: Sequence[str] = (), threads: int | None = None, scores: bool = False, windows: bool = False
) -> Any:
    """Open an ONNX model on the CPU so that it also returns what each layer selects, as its last outputs.

    With `scores`, they are followed by the scores that each layer selects from, as its router gives them. With
    `windows`, the one layer routes windows.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If the graph has no selection for a layer, or one that is fed by no router.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'mod-vision[export]'.") from None
    model = onnx.load(path)
    if windows:
        placed = _onnx_windows(path, layers[0], model.graph)
        found, shown = placed[:1], [_join(model.graph, [node.output[0] for node in placed])]
    else:
        nodes = {node.name.replace("/", "."): node for node in model.graph.node if node.op_type == "TopK"}
        found = [nodes[_find(path, layer, nodes, f".{layer}.TopK")] for layer in layers]
        shown = [node.output[1] for node in found]
    shown += [_scores(path, model.graph, node) for node in found if scores]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)  # ONNX Runtime knows their types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions would take the cores
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _onnx_windows(path: Path, layer: str, graph: Any) -> list[Any]:
    """Return the ArgMax nodes that place windows: those beside the first one, others would be of NMS.

    Raises:
        ValueError: If there is none.
    """
    nodes = [node for node in graph.node if node.op_type == "ArgMax"]
    if not nodes:
        raise ValueError(f"{path} has no ArgMax node for the windows of {layer}: its routing was not exported.")
    scope = nodes[0].name.rpartition("/")[0]
    return [node for node in nodes if node.name.rpartition("/")[0] == scope]


def _join(graph: Any, names: Sequence[str]) -> str:
    """Add nodes to an ONNX graph that put values (B,) side by side, and return the name of what they give, (B, k)."""
    from onnx import helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.array([1]), "mod_vision_axis"))
    columns = [f"{name}_column" for name in names]
    for name, column in zip(names, columns, strict=True):
        graph.node.append(helper.make_node("Unsqueeze", [name, "mod_vision_axis"], [column]))
    graph.node.append(helper.make_node("Concat", columns, ["mod_vision_windows"], axis=1))
    return "mod_vision_windows"


def _scores(path: Path, graph: Any, selection: Any) -> str:
    """Return the name of the scores that a TopK or ArgMax node selects from.

    Raises:
        ValueError: If no router computes them: those of the grid are constants.
    """
    routers = onnx_ranking(graph, selection).routers
    if not routers:
        raise ValueError(
            f"{path} has no router in front of {selection.name}, so it does not show scores; use the .pt file."
        )
    return str(routers[0].output[0])


def openvino_model(
    path: Path,
    layers: Sequence[str] = (),
    threads: int | None = None,
    precision: str | None = None,
    windows: bool = False,
) -> Any:
    """Compile an OpenVINO model for the CPU so that it also returns what each layer selects.

    OpenVINO computes in bfloat16 by itself where the CPU has it; `precision="f32"` forbids that.

    Raises:
        ImportError: If openvino is not installed.
        ValueError: If the graph has no selection for a layer.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install openvino.") from None
    core = openvino.Core()
    model = core.read_model(next(path.glob("*.xml")))
    nodes = {op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "TopK"}
    if windows:
        placed = [op.output(1) for name, op in nodes.items() if is_window(name)]
        if not placed:
            raise ValueError(f"{path} has no TopK node for the windows of {layers[0]}: its routing was not exported.")
        model.add_outputs(openvino.opset13.concat(placed, 1).output(0))
    else:
        found = [nodes[_find(path, layer, nodes, f"__module.{layer}/aten::topk")] for layer in layers]
        model.add_outputs([op.output(1) for op in found])
    config = {"INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
    return core.compile_model(model, "CPU", config | ({"INFERENCE_PRECISION_HINT": precision} if precision else {}))


def _onnx_runner(path: Path, layers: Sequence[str], windows: bool) -> Runner:
    session = onnx_session(path, layers, windows=windows)
    name = session.get_inputs()[0].name
    return lambda images: _split(session.run(None, {name: images.numpy()}), layers)


def _openvino_runner(path: Path, layers: Sequence[str], windows: bool) -> Runner:
    model = openvino_model(path, layers, precision="f32", windows=windows)
    return lambda images: _split([np.asarray(value) for value in model(images.numpy()).values()], layers)


def _torchscript_runner(path: Path, layers: Sequence[str], windows: bool) -> Runner:
    model = torch.jit.load(path, map_location="cpu").eval()

    def run(images: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
        outputs, routes = run_and_select(model, images, len(layers), windows)
        return [value.numpy() for value in tensors(outputs)], routes

    return run


def run_and_select(
    model: Any, images: torch.Tensor, layers: int, windows: bool = False
) -> tuple[Any, list[np.ndarray]]:
    """Run a torch model and return its outputs and what its routed layers select, in forward order.

    Args:
        model: The model, or a TorchScript module of it.
        images: (B, 3, H, W).
        layers: Number of its routed layers.
        windows: Whether the one layer routes windows.

    Raises:
        ValueError: If it selects less often than it has routed layers.
    """
    with torch.inference_mode(), _Selections() as selections:
        outputs = model(images)
    if windows:
        if not selections.places:
            raise ValueError("the model places no windows: its routing was not exported.")
        return outputs, [torch.stack(selections.places, 1).numpy()]
    if len(selections.indices) < layers:
        raise ValueError(f"the model selects {len(selections.indices)} times, but has {layers} routed layers.")
    return outputs, [indices.numpy() for indices in selections.indices[:layers]]  # the head selects after them


def tensors(outputs: Any) -> list[torch.Tensor]:
    """Return the tensors that a model gives, however they are packed."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def _split(values: list[np.ndarray], layers: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return outputs and routed indices, which are the last values."""
    return values[: len(values) - len(layers)], values[len(values) - len(layers) :]


class _Selections(TorchDispatchMode):
    """Notes the indices of every top-k, and of every argmax, that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[torch.Tensor] = []
        self.places: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.topk.default:
            self.indices.append(out[1])
        elif func is torch.ops.aten.argmax.default:
            self.places.append(out)
        return out


def _find(path: Path, layer: str, names: Any, start: str) -> str:
    """Return the name of a layer's selection.

    Raises:
        ValueError: If there is none.
    """
    found = [name for name in names if name.startswith(start)]
    if not found:
        raise ValueError(f"{path} has no TopK node for the routed layer {layer}: its routing was not exported.")
    return found[0]
