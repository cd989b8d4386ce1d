"""Models on windows beside the dense ones of the same weights, and what they put out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from conftest import randomise
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks

KINDS = {"segment": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}


def described(name: str, **windows: Any) -> dict[str, Any]:
    d = tasks.yaml_model_load(f"{name}.yaml")
    d["nc"] = 3
    return d | ({"mod": {"windows": {"size": 128, **windows}}} if windows else {})


def made(d: dict[str, Any]) -> Any:
    model = KINDS.get(tasks.guess_model_task(d), tasks.DetectionModel)(copy.deepcopy(d), verbose=False)
    model.args = get_cfg()
    model.end2end = bool(d.get("end2end")) or "v10Detect" in str(d["head"])
    return model


def pair(name: str, **windows: Any) -> tuple[Any, Any]:
    """A model on windows and the dense one, with the same weights."""
    dense = randomise(made(described(name))).eval()
    routed = made(described(name, **{"capacity": 0.25, **windows})).eval()
    routed.load(dense, verbose=False)
    return routed, dense


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if type(value) in (list, tuple) else ()
    return [value] if isinstance(value, torch.Tensor) else [t for part in parts for t in tensors(part)]
