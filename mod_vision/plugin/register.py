"""Registration: the few places of Ultralytics that have to know about routed models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_vision.resources import find_shipped
from mod_vision.viz.training_plots import CALLBACKS as PLOTS
from mod_vision.yolo.blocks.old_names import know_old_names
from mod_vision.yolo.export.any_batch import with_any_batch_in_onnx, with_any_batch_in_openvino, with_fixed_size
from mod_vision.yolo.export.float_router import with_float_router_in_onnx, with_float_router_in_openvino
from mod_vision.yolo.export.notes import note_routing
from mod_vision.yolo.model.frames import with_padding
from mod_vision.yolo.model.package_files import export_elsewhere, keep_photos_clean
from mod_vision.yolo.model.rows import routed_parse_model
from mod_vision.yolo.model.safe_classes import allow_classes, allow_vit_classes
from mod_vision.yolo.model.windows import copying_look, on_windows
from mod_vision.yolo.run.stream_hooks import begin_streams, finish_frames, look_at_frames
from mod_vision.yolo.run.watch import follow_capacities, warn_of_broken_routes
from mod_vision.yolo.run.window_results import find_features_in_windows, keeping_windows, tell_windows
from mod_vision.yolo.train.callbacks import CALLBACKS
from mod_vision.yolo.train.loss import with_router_losses

PATCHED = {  # what must be there before anything is changed
    "ultralytics.nn.tasks": ("parse_model", "check_yaml", "BaseModel", "RTDETRDetectionModel"),
    "ultralytics.utils.checks": ("check_file",),
    "ultralytics.utils.downloads": ("attempt_download_asset",),
    "ultralytics.utils.callbacks.base": ("default_callbacks",),
    "ultralytics.engine.results": ("Results",),
    "ultralytics.nn.backends.onnx": ("ONNXBackend",),
    "ultralytics.utils.export.engine": ("torch2onnx",),
    "ultralytics.utils.export.onnx": ("onnx_int8_quantize",),
    "ultralytics.utils.export.openvino": ("torch2openvino",),
}
OTHERS = (
    ("on_predict_start", follow_capacities),
    ("on_predict_start", find_features_in_windows),
    ("on_predict_postprocess_end", warn_of_broken_routes),
    ("on_predict_postprocess_end", tell_windows),
    ("on_predict_start", begin_streams),
    ("on_predict_batch_start", look_at_frames),
    ("on_predict_postprocess_end", finish_frames),
    ("on_export_start", export_elsewhere),
    ("on_export_start", note_routing),
)


def register() -> None:
    """Make Ultralytics parse, find, train and safely load routed models. Idempotent.

    Raises:
        ImportError: If the installed Ultralytics lacks something that registration needs. Nothing is changed then.
    """
    tasks, checks, downloads, callbacks, results, backend, engine, onnx, openvino = _modules()
    if getattr(tasks, "mod_vision_registered", False):
        return
    tasks.parse_model = routed_parse_model(tasks.parse_model)
    tasks.check_yaml = _finding_ours(tasks.check_yaml)
    checks.check_file = _finding_ours(checks.check_file, keep_photos_clean)
    downloads.attempt_download_asset = _finding_ours(downloads.attempt_download_asset)  # read anew for each checkpoint
    data_utils = sys.modules.get("ultralytics.data.utils")
    if hasattr(data_utils, "check_file"):  # else it is still to be imported, or about to take it from `checks`
        data_utils.check_file = checks.check_file
    for model_type in (tasks.BaseModel, tasks.RTDETRDetectionModel):
        model_type.loss = with_router_losses(model_type.loss)
    tasks.BaseModel._predict_once = with_padding(on_windows(tasks.BaseModel._predict_once))
    tasks.BaseModel.load = copying_look(tasks.BaseModel.load)
    results.Results.new = keeping_windows(results.Results.new)
    for event, callback in (*CALLBACKS.items(), *PLOTS.items(), *OTHERS):
        callbacks.default_callbacks[event].append(callback)
    backend.ONNXBackend.load_model = with_fixed_size(backend.ONNXBackend.load_model)
    onnx.onnx_int8_quantize = with_float_router_in_onnx(onnx.onnx_int8_quantize)
    engine.torch2onnx = with_any_batch_in_onnx(engine.torch2onnx)
    openvino.torch2openvino = with_any_batch_in_openvino(with_float_router_in_openvino(openvino.torch2openvino))
    allow_classes()
    know_old_names()
    if getattr(tasks, "SAFE_LOAD", False):
        allow_vit_classes()
    tasks.mod_vision_registered = True


def _modules() -> list[Any]:
    """Import what is patched, in the order of `PATCHED`.

    Raises:
        ImportError: If something is missing.
    """
    modules = [importlib.import_module(name) for name in PATCHED]
    for module, names in zip(modules, PATCHED.values(), strict=True):
        if missing := [name for name in names if not hasattr(module, name)]:
            raise ImportError(f"Ultralytics has no {', '.join(missing)} in {module.__name__}; install another version.")
    return modules


def _finding_ours(check: Any, before: Callable[[], None] = lambda: None) -> Any:
    """Wrap a file check so that bare names of our files resolve; the user's own files come first."""

    def check_ours(file: Any, *args: Any, **kwargs: Any) -> Any:
        before()
        ours = None if Path(str(file)).exists() else find_shipped(str(file))
        return str(ours) if ours else check(file, *args, **kwargs)

    return check_ours
