"""Models on windows, calibrated: untrained, but with features and scores that depend on the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import guess_model_task, yaml_model_load

from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.model.windows import head_of

SIZE = 256
GRAY = 114 / 255


def calibrated(name: str, photos: list[Path], folder: Path, **windows: Any) -> Path:
    """Save an untrained model on windows whose features depend on the image, and whose router likes some of it."""
    torch.manual_seed(1)
    d = {key: value for key, value in yaml_model_load(f"{name}.yaml").items() if key not in ("yaml_file", "scale")}
    settings = {"size": 64, "capacity": 0.25, **windows}
    (folder / f"{name}-win.yaml").write_text(yaml.safe_dump(d | {"nc": 3, "mod": {"windows": settings}}))
    yolo = YOLO(folder / f"{name}-win.yaml", task=guess_model_task(d))
    model: Any = yolo.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average of what follows
            module.reset_running_stats()
    for module in head_of(model).entry.router.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.weight, std=0.5)  # the last layer
    for name, module in model.model[-1].named_modules():
        if "cv3" in name and isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.weight, std=0.3)  # scores differ: detections that tie come in any order
    with torch.no_grad():
        model(torch.cat(input_tensors(photos[:6], SIZE)))
    yolo.save(folder / f"{name}.pt")
    return folder / f"{name}.pt"


def looked_at(photos: list[Path]) -> list[torch.Tensor]:
    """Twenty photos, and images on which all cells tie: black, white, the gray of padding, another gray."""
    blank = [torch.full((1, 3, SIZE, SIZE), value) for value in (0.0, 1.0, GRAY, 0.5)]
    return [*input_tensors(photos[:20], SIZE), *blank]
