"""Capacity of a whole Ultralytics model."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.engine.model import Model

from mod_vision import routing
from mod_vision.yolo.parse import ROUTED_NAMES, STAGE


def set_capacity(model: Any, capacity: Any) -> None:
    """Set the capacity of every routed layer, and of the YAML the model is rebuilt from when it is trained on.

    Args:
        model: A `YOLO` object or a torch model with routed layers.
        capacity: Share of tokens in (0, 1], or a list of them over the depth of the stages.

    Raises:
        ValueError: If the capacity is not valid or the model routes nothing.
    """
    routing.set_capacity(model, capacity)
    capacity = capacity if isinstance(capacity, (int, float)) else list(capacity)  # as YAML would have it
    if isinstance(model, Model):
        model.predictor = None  # it keeps a copy of the model, at the old capacity
    inner = model.model if isinstance(model, Model) else model
    if not isinstance(inner, nn.Module) or not isinstance(getattr(inner, "yaml", None), dict):
        return
    if getattr(model, "ckpt", None) == {}:  # built from a YAML file, which Ultralytics would read again to train
        model.ckpt = {"model": inner}
    inner.yaml["mod"] = {**(inner.yaml.get("mod") or {}), "capacity": capacity}
    for row in inner.yaml["backbone"] + inner.yaml["head"]:
        if row[2] in ROUTED_NAMES:
            if row[3] and isinstance(row[3][-1], dict):
                row[3][-1].pop("capacity", None)
            if row[2] == STAGE and len(row[3]) > 1 and not isinstance(row[3][1], dict):
                row[3][1] = capacity
