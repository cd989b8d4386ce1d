"""Capacity of a whole Ultralytics model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from ultralytics import YOLO
from ultralytics.engine.model import Model

from mod_vision import routing
from mod_vision.yolo.images import load_model
from mod_vision.yolo.parse import ROUTED_NAMES, write_options


def load_at(model: Any, capacity: Any = None) -> YOLO:
    """Load a model as `load_model` does, at a capacity as `set_capacity` takes it; None is the model's own.

    Raises:
        FileNotFoundError: As `load_model`.
        ValueError: As `load_model` and `set_capacity`.
    """
    yolo = load_model(model)
    if capacity is not None:
        set_capacity(yolo, capacity)
    return yolo


def set_capacity(model: Any, capacity: Any) -> None:
    """Set the capacity of routed layers, and of the YAML the model is rebuilt from when it is trained on.

    Args:
        model: A `YOLO` object or a torch model with routed layers.
        capacity: Share of tokens in (0, 1], or a list of them over the depth of the stages, or a mapping of such by
            layer: `{"model.6": 0.3, 8: 0.5}`, where a number is a row of the model YAML.

    Raises:
        ValueError: If a capacity is not valid, a layer does not exist, or the model routes nothing. Nothing is changed.
    """
    inner = model.model if isinstance(model, Model) else model
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model {inner} is an exported one, its capacity is fixed; set it before the export.")
    if isinstance(capacity, Mapping):
        capacity = {f"model.{key}" if str(key).isdigit() else str(key): value for key, value in capacity.items()}
    routing.set_capacity(inner, capacity)
    if isinstance(model, Model):
        model.predictor = None  # it keeps a copy of the model, at the old capacity
        if model.ckpt == {}:  # built from a YAML file, which Ultralytics would read again to train
            model.ckpt = {"model": inner}
    if isinstance(getattr(inner, "yaml", None), dict):
        if not isinstance(capacity, Mapping):
            inner.yaml["mod"] = {**(inner.yaml.get("mod") or {}), "capacity": _plain(capacity)}
        _write_rows(inner)


def _write_rows(net: Any) -> None:
    """Write the capacity of each routed row into its options.

    Rows of several routed layers with different capacities are left as they are: a row has one.
    """
    for i, row in enumerate(net.yaml["backbone"] + net.yaml["head"]):
        found = {layer.capacities for _, layer in routing.routed_layers(net.model[i])}
        if row[2] not in ROUTED_NAMES or len(found) != 1:
            continue
        write_options(row, {"capacity": _plain(found.pop())})


def _plain(capacity: Any) -> Any:
    """Return a capacity as YAML would have it: one number if all are equal, else a list."""
    values = [capacity] if isinstance(capacity, (int, float)) else list(capacity)
    return values[0] if len(set(values)) == 1 else values
