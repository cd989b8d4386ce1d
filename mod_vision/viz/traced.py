"""Models that tell what they route: PyTorch or an ONNX export runs an image, and the plan of every layer is kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.nn.attention_windows import window_slots
from mod_vision.routing import RoutedLayer, RoutingPlan, routed_layers
from mod_vision.routing.capacity import ceil_div
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.routing.windows import WindowPlan
from mod_vision.routing.zone import mask_of
from mod_vision.yolo.export.graphs import onnx_session
from mod_vision.yolo.export.notes import LayerNote, read_notes
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_export, load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import input_size
from mod_vision.yolo.run.letterbox import Forward, evaluating, forward_letterboxed, letterbox
from mod_vision.yolo.run.predict import Postprocess

CHECKPOINTS = (".pt", ".yaml", ".yml")


class TracedLayer(NamedTuple):
    """What one routed layer did with an image.

    Attributes:
        name: Name of the layer, such as 'model.6'.
        plan: Its plan, for a batch of one image.
        capacities: One for the whole layer, or one for each block.
        blocks: Number of its blocks.
        trained: False if its router was never trained; True where that is not known.
        coarse: Share of its side at which the whole image is run besides its windows; 0 if it is not, or not known.
        zone: (GRID, GRID) True in the zone that it looks at; None of a layer without, or where that is not known.
        by_score: Whether scores of a learned router placed its windows; False where that is not known.
    """

    name: str
    plan: RoutingPlan | WindowPlan
    capacities: Sequence[float]
    blocks: int
    trained: bool = True
    coarse: float = 0.0
    zone: torch.Tensor | None = None
    by_score: bool = False

    @property
    def windowed(self) -> bool:
        """Whether it routes windows."""
        return isinstance(self.plan, WindowPlan)

    @property
    def passed(self) -> torch.Tensor:
        """How many of its blocks each pixel of its feature map passed, (1, H_s, W_s) int."""
        return self.plan.passed(self.capacities, self.blocks)

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of blocks that a pixel can pass: later blocks take a part of those that earlier ones take."""
        if len(set(self.capacities)) == 1:
            return 0, self.blocks
        return 0, *sorted({sum(c >= least for c in self.capacities) for least in self.capacities})


class Trace(NamedTuple):
    """An image through a model: the forward, and the layers that routed, in forward order."""

    forward: Forward
    layers: list[TracedLayer]


class TracedModel(Protocol):
    """A model that tells what it routes."""

    def trace(self, image: np.ndarray) -> Trace:
        """Run an image (H, W, 3), uint8 in BGR.

        Raises:
            ValueError: If the model routes nothing.
        """

    def gflops(self, trace: Trace) -> tuple[float, float] | None:
        """Return the executed GFLOPs of a trace and those of the dense baseline, None where they cannot be counted."""

    def postprocess(self, conf: float) -> Postprocess:
        """Return what turns the outputs of a trace into Ultralytics' results, with confidences of at least `conf`."""


def open_traced(model: Any, imgsz: int) -> TracedModel:
    """Open a model in any form that tells what it routes.

    Args:
        model: A `YOLO` object, a .pt file, a model YAML, or an ONNX export.
        imgsz: Longer side of the input; exports of a fixed size keep theirs.

    Raises:
        FileNotFoundError: If the model does not exist.
        ImportError: If an export's runtime is not installed.
        ValueError: If the model has another form, or `imgsz` is not positive.
    """
    path = model if isinstance(model, (str, Path)) else model.model  # the latter is a path in a `YOLO` of an export
    if not isinstance(path, (str, Path)) or Path(path).suffix.lower() in CHECKPOINTS:
        return _TracedTorch(load_model(model), imgsz)
    if Path(path).suffix.lower() != ".onnx":
        raise ValueError(
            f"model {path} does not show what it routes; use the checkpoint (.pt), a model YAML, or an ONNX export."
        )
    return _TracedOnnx(Path(path), imgsz)


def trace_net(net: Any, image: np.ndarray, imgsz: int) -> Trace:
    """Run an image (H, W, 3), uint8 in BGR, through the network of a `YOLO` object.

    Raises:
        ValueError: If it is none in PyTorch, or routes nothing.
    """
    forward = forward_letterboxed(net, image, imgsz)
    head = head_of(net)
    coarse = head.coarse if head else 0.0
    with evaluating(net):  # a layer in training tells of nothing that moved
        layers = [_traced(name, layer, coarse) for name, layer in routed_layers(net) if not layer.dense]
    if not layers:
        raise ValueError(f"nothing is routed: {_why_dense(net)}.")
    return Trace(forward, layers)


def _why_dense(net: Any) -> str:
    """Return why a model routes nothing, and what to do."""
    if any(routed_layers(net)):
        return "all capacities are 1; choose one below it by `mod-vision fit` or `set_capacity`"
    return (
        "this model has no routed layer; `mod-vision convert` puts some into a trained one, train it or `fit` it then"
    )


class _TracedTorch:
    """A model in PyTorch."""

    def __init__(self, yolo: Any, imgsz: int) -> None:
        self.yolo, self.imgsz = yolo, imgsz
        self._executed: dict[Any, float] = {}
        self._dense: dict[Any, float] = {}

    def trace(self, image: np.ndarray) -> Trace:
        """Run an image."""
        trace = trace_net(self.yolo.model, image, self.imgsz)
        if getattr(self.yolo, "ckpt", None):  # else it was built from a YAML; routers of windows know better
            return trace
        layers = [layer if layer.windowed else layer._replace(trained=False) for layer in trace.layers]
        return trace._replace(layers=layers)

    def gflops(self, trace: Trace) -> tuple[float, float]:
        """Count them once for each input size, capacities and number of routed tokens: nothing else changes them."""
        size, batch = trace.forward.boxed.size, trace.forward.batch
        capacities = [layer.capacities for _, layer in routed_layers(self.yolo.model)]
        routed = (size, *capacities, *(_shape(layer.plan) for layer in trace.layers))
        if size not in self._dense:
            dense = copy.deepcopy(self.yolo.model)
            set_capacity(dense, 1.0)
            self._dense[size] = executed_gflops(dense, image=batch)
        if routed not in self._executed:
            self._executed[routed] = executed_gflops(self.yolo.model, image=batch)
        return self._executed[routed], self._dense[size]

    def postprocess(self, conf: float) -> Postprocess:
        """Return what turns outputs into results."""
        inner = self.yolo.model
        return Postprocess(self.yolo, inner.names, bool(getattr(inner, "end2end", False)), conf)


def _shape(plan: RoutingPlan | WindowPlan) -> tuple[Any, ...]:
    """Return what the cost of a plan depends on; where what moved is taken, no router was asked for classes."""
    return plan.width, plan.share, getattr(plan, "classes", None) is None


def _traced(name: str, layer: RoutedLayer, coarse: float) -> TracedLayer:
    """Return what a layer did in the last forward, beside which the whole image was run at a share of its side.

    Raises:
        ValueError: If it did not run.
    """
    if layer.plan is None:
        raise ValueError(f"{name} did not run in the forward of the model, so it has no route.")
    if not isinstance(layer, WindowedLayer):
        return TracedLayer(name, layer.plan, layer.capacities, layer.depth)
    sums = layer.zone_sums
    zone, by_score = None if sums is None else mask_of(sums[0]), layer.router.learned and layer.moved is None
    return TracedLayer(name, layer.plan, layer.capacities, layer.depth, layer.router.trained, coarse, zone, by_score)


class _TracedOnnx:
    """An ONNX export: its graph gives indices and scores, the notes that it was exported with the rest."""

    def __init__(self, path: Path, imgsz: int) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"model {path} does not exist.")
        self.path, self.notes = path, read_notes(path)
        windows = any(note.windows for note in self.notes.layers)
        self.session = onnx_session(path, [note.name for note in self.notes.layers], scores=True, windows=windows)
        self.input = self.session.get_inputs()[0]
        batch, _, *size = self.input.shape
        self.dynamic = not all(isinstance(side, int) for side in size)
        self.batch = batch if isinstance(batch, int) else 1
        self.size = input_size(imgsz, self.notes.stride) if self.dynamic else size

    def trace(self, image: np.ndarray) -> Trace:
        """Run an image, alone or with black ones, where the export has a fixed batch."""
        one, boxed = letterbox(image, self.size, self.notes.stride, auto=self.dynamic)
        batch = torch.cat((one, one.new_zeros(self.batch - 1, *one.shape[1:]))).numpy()
        feed = {self.input.name: batch.astype(np.float16) if "float16" in self.input.type else batch}
        values = [torch.from_numpy(value[:1]) for value in self.session.run(None, feed)]
        n = len(self.notes.layers)
        outputs, indices, scores = values[: -2 * n], values[-2 * n : -n], values[-n:]
        layers = [_layer(*part, boxed.size) for part in zip(self.notes.layers, indices, scores, strict=True)]
        return Trace(Forward(boxed, one, outputs[0] if len(outputs) == 1 else outputs), layers)

    def gflops(self, trace: Trace) -> None:
        """Graphs are not counted."""

    def postprocess(self, conf: float) -> Postprocess:
        """Return what turns outputs into results."""
        return Postprocess(load_export(self.path), self.notes.names, self.notes.end2end, conf)


def _layer(note: LayerNote, indices: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> TracedLayer:
    """Rebuild the plan of a layer.

    Args:
        note: What the layer is.
        indices: (1, k) selected tokens, (1, windows, k) places within attention windows, or (1, k) places of windows.
        scores: (1, N), of windows (1, 1 + classes, h, w).
        size: (height, width) of the input.
    """
    grid = ceil_div(size[0], note.stride), ceil_div(size[1], note.stride)
    if note.windows:
        rows, cols = note.windows
        places = grid[1] - cols + 1
        corners = torch.stack((indices // places, indices % places), 2)
        windows = WindowPlan(scores[:, 0].flatten(1).float(), corners, grid, (rows, cols), note.stride)
        return TracedLayer(note.name, windows, note.capacities, note.blocks)
    if indices.ndim == 3:
        slots = window_slots(grid, note.window, indices.device)[None]
        chosen = slots.gather(2, indices).flatten(1)
        indices = chosen[chosen < grid[0] * grid[1]][None]  # places beyond the map hold no token
    plan = RoutingPlan(scores, indices, None, grid)
    return TracedLayer(note.name, plan, note.capacities, note.blocks)
