"""What an export says about its routing: notes in the metadata that Ultralytics' exporter writes into it."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.yolo.export.any_batch import keep_size

KEY = "mod_vision"


class LayerNote(NamedTuple):
    """What the graph of an export does not tell about a routed layer.

    Attributes:
        name: Name of the layer, such as 'model.6'.
        stride: Pixels of the input per pixel of its feature map.
        blocks: Number of blocks.
        capacities: Share of tokens routed, one for the whole layer or one per block.
        window: Side of an attention window in tokens, within which tokens are selected, None for the whole map.
        windows: Rows and columns of a routed window in cells, which are the layer's tokens, None if it has none.
    """

    name: str
    stride: int
    blocks: int
    capacities: list[float]
    window: int | None
    windows: list[int] | None = None


class ExportNotes(NamedTuple):
    """What an export says about itself.

    Attributes:
        layers: Its layers that route, in forward order.
        names: Name of each class.
        stride: Its largest stride.
        end2end: Whether its outputs are detections, not candidates for them.
    """

    layers: list[LayerNote]
    names: dict[int, str]
    stride: int
    end2end: bool


def note_routing(exporter: Any) -> None:
    """Add a note about each layer that routes to the metadata of an export; called before Ultralytics writes it.

    Not for RT-DETR: exports of it are opened by Ultralytics as YOLO's, whose images and boxes are scaled otherwise.

    Raises:
        ValueError: If a model that runs on windows shall take any batch in a format that cannot.
    """
    if isinstance(exporter.model, importlib.import_module("ultralytics.nn.tasks").RTDETRDetectionModel):
        return
    height = exporter.im.shape[2]
    notes = [_note(name, layer, height) for name, layer in routed_layers(exporter.model) if layer.plan is not None]
    if exporter.args.dynamic and any(note.windows for note in notes):
        keep_size(exporter)
    if notes:
        exporter.metadata[KEY] = json.dumps([note._asdict() for note in notes])


def _note(name: str, layer: RoutedLayer, height: int) -> LayerNote:
    """Return the note of a layer that routed an image of some height."""
    routed = isinstance(layer, WindowedLayer)
    window, windows = (None, list(layer.plan.window)) if routed else (getattr(layer, "window", None), None)
    return LayerNote(name, height // layer.plan.size[0], layer.depth, list(layer.capacities), window, windows)


def read_notes(path: Path) -> ExportNotes:
    """Read what an export says about itself.

    Raises:
        ValueError: If it says nothing about its routing, or routes what is routed no more.
    """
    from ultralytics.nn.backends.base import BaseBackend  # not while Ultralytics itself is being imported

    metadata = BaseBackend.read_metadata(path)
    if KEY not in metadata:
        raise ValueError(
            f"{path} says nothing about its routing: it is no export of a routed YOLO, or was made at capacity 1 or "
            "without mod_vision; use the checkpoint, or export it again."
        )
    names, args, end2end = (ast.literal_eval(metadata[key]) for key in ("names", "args", "end2end"))
    notes = json.loads(metadata[KEY])
    if any(note.pop("tile", 1) > 1 for note in notes):  # the side of a token, in notes of older versions
        raise ValueError(
            f"{path} routes convolutions by tiles, which was removed; export a model that routes attention."
        )
    layers = [LayerNote(**note) for note in notes]
    return ExportNotes(layers, names, int(metadata["stride"]), bool(end2end or args.get("nms")))
