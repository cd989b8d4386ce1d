"""Registration: the few places of Ultralytics that have to know about routed models."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from mod_vision.nn import MoDStage
from mod_vision.nn.attention import SelfAttention, TransformerBlock
from mod_vision.nn.skip import CoarseSkip, LinearSkip
from mod_vision.resources import find_shipped
from mod_vision.routing import ROUTERS
from mod_vision.yolo.export_notes import note_routing
from mod_vision.yolo.float_router import with_float_router_in_onnx, with_float_router_in_openvino
from mod_vision.yolo.loss import with_router_losses
from mod_vision.yolo.parse import routed_parse_model
from mod_vision.yolo.route_plots import CALLBACKS as PLOTS
from mod_vision.yolo.training import CALLBACKS
from mod_vision.yolo.twins import TWINS
from mod_vision.yolo.twins.conv import prepare_export
from mod_vision.yolo.watch import warn_of_broken_routes

TESTED = ("8.4.190", "8.5")  # from, up to but without
SAFE_CLASSES = (MoDStage, TransformerBlock, SelfAttention, CoarseSkip, LinearSkip, *ROUTERS.values(), *TWINS.values())


def register() -> None:
    """Make Ultralytics parse, find, train and safely load routed models. Idempotent.

    Raises:
        ImportError: If the installed Ultralytics lacks a place that registration needs.
    """
    tasks = importlib.import_module("ultralytics.nn.tasks")
    if getattr(tasks, "mod_vision_registered", False):
        return
    missing = [name for name in ("parse_model", "check_yaml", "BaseModel") if not hasattr(tasks, name)]
    if missing:
        raise ImportError(f"Ultralytics has no {', '.join(missing)} in nn.tasks; use ultralytics {version_range()}.")
    tasks.parse_model = routed_parse_model(tasks.parse_model)
    tasks.check_yaml = _finding_ours(tasks.check_yaml)
    checks = importlib.import_module("ultralytics.utils.checks")
    checks.check_file = _finding_ours(checks.check_file)
    downloads = importlib.import_module("ultralytics.utils.downloads")
    downloads.attempt_download_asset = _finding_ours(downloads.attempt_download_asset)  # read anew for each checkpoint
    data_utils = sys.modules.get("ultralytics.data.utils")
    if hasattr(data_utils, "check_file"):  # else it is still to be imported, or about to take it from `checks`
        data_utils.check_file = checks.check_file
    for model_type in (tasks.BaseModel, tasks.RTDETRDetectionModel):
        model_type.loss = with_router_losses(model_type.loss)
    defaults = importlib.import_module("ultralytics.utils.callbacks.base").default_callbacks
    for event, callback in (*CALLBACKS.items(), *PLOTS.items()):
        defaults[event].append(callback)
    defaults["on_predict_postprocess_end"].append(warn_of_broken_routes)
    defaults["on_export_start"].append(note_routing)
    defaults["on_export_start"].append(prepare_export)
    onnx, openvino = (importlib.import_module(f"ultralytics.utils.export.{name}") for name in ("onnx", "openvino"))
    onnx.onnx_int8_quantize = with_float_router_in_onnx(onnx.onnx_int8_quantize)
    openvino.torch2openvino = with_float_router_in_openvino(openvino.torch2openvino)
    torch.serialization.add_safe_globals(list(SAFE_CLASSES))
    if getattr(tasks, "SAFE_LOAD", False):
        allow_vit_classes()
    tasks.mod_vision_registered = True


def allow_vit_classes() -> None:
    """Let checkpoints of ViT backbones be loaded safely; apart from the others, since timm is slow to import."""
    from mod_vision.nn import pyramid, timm_vit, vit

    own = (vit.MoDViT, vit.BlockGroup, vit.RoutedGroup, vit.Group, pyramid.SimplePyramid)
    torch.serialization.add_safe_globals([*own, *timm_vit.timm_classes()])


def version_range() -> str:
    """Return the range of Ultralytics versions this package is tested with."""
    return f">={TESTED[0]},<{TESTED[1]}"


def _finding_ours(check: Any) -> Any:
    """Wrap a file check so that bare names of our files resolve; the user's own files come first."""

    def check_ours(file: Any, *args: Any, **kwargs: Any) -> Any:
        ours = None if Path(str(file)).exists() else find_shipped(str(file))
        return str(ours) if ours else check(file, *args, **kwargs)

    return check_ours
