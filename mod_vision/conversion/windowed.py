"""The same network on windows, with a router that has to be trained, and back: all weights stay."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

from ultralytics import YOLO

from mod_vision.routing import routed_layers
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.trust import restricted
from mod_vision.yolo.model.windows import head_of


def on_windows(model: YOLO, settings: WindowSettings) -> YOLO:
    """Return a model with the weights of a dense one that runs on windows; the one that is given stays as it is.

    Raises:
        ValueError: If the model is exported, fused or routed already, or does not go with windows.
    """
    new = copy_model(model)
    old: Any = new.model
    if any(routed_layers(old)):
        raise ValueError("the model is routed already; convert takes the dense one.")
    d = {**deepcopy(old.yaml), "mod": {"windows": asdict(settings)}}
    _with(new, old, d, str(model.task))
    if missing := old.state_dict().keys() - new.model.state_dict().keys():
        raise ValueError(f"weights of the model find no place, such as {min(missing)}; its layers are not its YAML's.")
    return new


def without_windows(model: YOLO) -> YOLO:
    """Return the dense model of one that runs on windows: the same weights, without a router.

    Raises:
        ValueError: If the model does not run on windows.
    """
    new = copy_model(model)
    old: Any = new.model
    if head_of(old) is None:
        raise ValueError("the model does not run on windows, so there is no dense one to go back to.")
    d = deepcopy(old.yaml)
    d["mod"] = {key: value for key, value in d["mod"].items() if key != "windows"}
    return _with(new, old, d, str(model.task))


def _with(new: YOLO, old: Any, d: dict[str, Any], task: str) -> YOLO:
    """Give a `YOLO` object the network that a YAML describes, with the weights and names of another."""
    with restricted():  # the YAML is that of a checkpoint
        net = type(old)(d, ch=d.get("channels", 3), nc=old.model[-1].nc, verbose=False)
    net.load(old, verbose=False)
    net.names, net.args, net.task = old.names, getattr(old, "args", None), task
    new.model, new.ckpt = net.eval(), {"model": net, "train_args": dict(new.overrides)}  # size, data
    return new
