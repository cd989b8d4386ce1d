"""Capacity of a whole Ultralytics model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from ultralytics import YOLO
from ultralytics.engine.model import Model

from mod_vision.routing import routed_layers
from mod_vision.yolo.blocks import KINDS
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.rows import write_options


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
            layer: `{"model.6": 0.3, 8: 0.5}`, where a number is a row of the model YAML. The name of a module with
            routed layers in it stands for all of them.

    Raises:
        ValueError: If a capacity is not valid, a layer does not exist, or the model routes nothing. Nothing is changed.
    """
    inner = model.model if isinstance(model, Model) else model
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model {inner} is an exported one, its capacity is fixed; set it before the export.")
    if isinstance(capacity, Mapping):
        capacity = {f"model.{key}" if str(key).isdigit() else str(key): value for key, value in capacity.items()}
    _set_layers(inner, capacity)
    if isinstance(model, Model):
        model.predictor = None  # it keeps a copy of the model, at the old capacity
        if model.ckpt == {}:  # built from a YAML file, which training would read again
            model.ckpt = {"model": inner}
    if isinstance(getattr(inner, "yaml", None), dict):
        section = inner.yaml.get("mod") or {}
        if section.get("windows") is not None:
            (layer,) = (layer for _, layer in routed_layers(inner))
            section = {**section, "windows": {**section["windows"], "capacity": _plain(layer.capacities)}}
        elif not isinstance(capacity, Mapping):
            section = {**section, "capacity": _plain(capacity)}
        inner.yaml["mod"] = section
        _write_rows(inner)


def own_capacity(model: YOLO) -> float:
    """Return the capacity of a model whose routed layers share one below 1, else 0.5."""
    found = {capacity for _, layer in routed_layers(model.model) for capacity in layer.capacities}
    return found.pop() if len(found) == 1 and min(found) < 1 else 0.5


def _set_layers(net: nn.Module, capacity: Any) -> None:
    """Set the capacity of every routed layer, or of those that a mapping names; the last key that fits a layer wins."""
    layers = dict(routed_layers(net))
    if not layers:
        raise ValueError("this model has no routed layer, so there is no capacity to set.")
    by_layer = capacity if isinstance(capacity, Mapping) else {"": capacity}
    wanted: dict[str, Any] = {}
    for key, value in by_layer.items():
        named = [name for name in layers if key in ("", name) or name.startswith(f"{key}.")]
        if not named:
            raise ValueError(f"there is no routed layer {key!r}, there are {', '.join(layers)}.")
        for name in named:
            layers[name].check_capacity(value, f"{name} ({type(layers[name]).__name__})")
            wanted[name] = value
    for name, value in wanted.items():
        layers[name].set_capacity(value)


def _write_rows(net: Any) -> None:
    """Write the capacity of each routed row into its options.

    Rows of several routed layers with different capacities are left as they are: a row has one.
    """
    for i, row in enumerate(net.yaml["backbone"] + net.yaml["head"]):
        found = {layer.capacities for _, layer in routed_layers(net.model[i])}
        if row[2] not in KINDS or len(found) != 1:
            continue
        write_options(row, {"capacity": _plain(found.pop())})


def _plain(capacity: Any) -> Any:
    """Return a capacity as YAML would have it: one number if all are equal, else a list."""
    values = [capacity] if isinstance(capacity, (int, float)) else list(capacity)
    return values[0] if len(set(values)) == 1 else values
