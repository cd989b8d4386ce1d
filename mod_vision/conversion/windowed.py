"""The same network on windows: all weights of a dense model, and a router that has to be trained."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

from ultralytics import YOLO

from mod_vision.routing import routed_layers
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.trust import restricted


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
    with restricted():  # the YAML is that of a checkpoint
        net = type(old)(d, ch=d.get("channels", 3), nc=old.model[-1].nc, verbose=False)
    net.load(old, verbose=False)
    if missing := old.state_dict().keys() - net.state_dict().keys():
        raise ValueError(f"weights of the model find no place, such as {min(missing)}; its layers are not its YAML's.")
    net.names, net.args, net.task = old.names, getattr(old, "args", None), model.task
    new.model, new.ckpt = net.eval(), {"model": net}
    return new
