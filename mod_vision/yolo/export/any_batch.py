"""`dynamic=True` of models on windows: any number of images of one size, where Ultralytics leaves the size open too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.routing import routed_layers
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.yolo.export.float_router import wrapped

FORMATS = ("onnx", "openvino")
Convert = Callable[..., Any]


def runs_on_windows(model: nn.Module) -> bool:
    """Return whether a model has a layer that routes windows, below capacity 1."""
    return any(isinstance(layer, WindowedLayer) and not layer.dense for _, layer in routed_layers(model))


def keep_size(exporter: Any) -> None:
    """Have an exporter that shall take any size and batch take any batch; called before the graph is made.

    Raises:
        ValueError: If the format cannot do it.
    """
    height, width = exporter.im.shape[2:]
    if exporter.args.format not in FORMATS:
        raise ValueError(
            f"format={exporter.args.format}: exports with windows have a fixed size, and any batch only in "
            f"{' and '.join(FORMATS)}; leave out dynamic=True, batch=8 takes 8 images."
        )
    exporter.model.model[-1].dynamic = False  # the places of a coarse pass are those of this size
    exporter.metadata["args"]["dynamic"] = None  # neither: True is any size too, and at False batches are split
    LOGGER.info(f"mod_vision: with windows, dynamic=True takes any number of images, all of {width}x{height} px")


def with_any_batch_in_onnx(export: Convert) -> Convert:
    """Wrap Ultralytics' making of an ONNX graph: of models on windows, the first axis alone stays open."""

    @functools.wraps(export)
    def torch2onnx(model: nn.Module, *args: Any, dynamic: Any = None, **kwargs: Any) -> Any:
        if dynamic and runs_on_windows(model):
            dynamic = {name: {0: axes[0]} for name, axes in dynamic.items()}
        return export(model, *args, dynamic=dynamic, **kwargs)

    return torch2onnx


def with_any_batch_in_openvino(export: Convert) -> Convert:
    """Wrap Ultralytics' conversion to OpenVINO in the same way."""

    @functools.wraps(export)
    def torch2openvino(model: nn.Module, im: Any, *args: Any, dynamic: bool = False, **kwargs: Any) -> Any:
        if not (dynamic and runs_on_windows(model)):
            return export(model, im, *args, dynamic=dynamic, **kwargs)
        import openvino

        with wrapped(openvino, "convert_model", _with_open_batch):
            return export(model, im, *args, dynamic=dynamic, **kwargs)

    return torch2openvino


def _with_open_batch(convert: Convert) -> Convert:
    """Let a conversion leave the first axis of the images open, whatever shape it is given."""

    def convert_model(traced: Any, example_input: Any, **kwargs: Any) -> Any:
        return convert(traced, example_input=example_input, **{**kwargs, "input": [-1, *example_input.shape[1:]]})

    return convert_model


def with_fixed_size(load_model: Callable[..., None]) -> Callable[..., None]:
    """Wrap the opening of an ONNX file by Ultralytics, which takes one of any batch for one of any size."""

    @functools.wraps(load_model)
    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        if self.metadata.get("dynamic", False) is None:  # as `keep_size` wrote it
            self.dynamic = False

    return load
