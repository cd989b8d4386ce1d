"""What small windows cost beside the objects they do not show: AP by where windows are, their side, and objectness."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.rows import score
from mod_vision.routing import window_layer
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of

PLACE = window_layer.plan_windows


def context(
    model: str = "yolo26n-mod-hituav.pt",
    data: str = "mod-hituav.yaml",
    imgsz: int = 960,
    size: Any = (192, 320),
    threshold: Any = (2.61, 1.0, -1.0),
    objectness: Any = (0.0, 0.25, 0.5, 1.0),
) -> None:
    """Score dense, windows on a grid with and without overlap, and windows of the router.

    On a grid that overlaps by half, every object up to half a window is whole in some window.

    Args:
        model: Checkpoint on windows.
        data: Data YAML.
        imgsz: Image size in pixels.
        size: Sides of windows in px.
        threshold: Thresholds of the router's windows.
        objectness: Exponents to score them with.
    """
    torch.set_num_threads(1)
    yolo = load_model(model)
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    entry.crowded = None
    for side in map(int, as_list(size)):
        entry.window = side
        for name, overlap in (("grid", 0), ("grid, half overlapping", 2)):
            window_layer.plan_windows = partial(_grid, overlap=overlap)
            _say(yolo, data, imgsz, f"{side} px, {name}", 0.0)
        window_layer.plan_windows = PLACE
        for least in map(float, as_list(threshold)):
            entry.set_threshold(least)
            for exponent in map(float, as_list(objectness)):
                _say(yolo, data, imgsz, f"{side} px, threshold {least:g}, objectness {exponent:g}", exponent)
    set_capacity(yolo, 1.0)
    _say(yolo, data, imgsz, "dense", 0.0)


def _grid(logits: torch.Tensor, size: tuple[int, int], window: tuple[int, int], *_: Any, overlap: int) -> WindowPlan:
    """Place windows on a grid of their side, or of half of it with an overlap of 2."""
    starts = [_starts(n, w, w // overlap if overlap else w) for n, w in zip(size, window, strict=True)]
    corners = torch.tensor([[row, col] for row in starts[0] for col in starts[1]])
    return WindowPlan(logits, corners.expand(len(logits), -1, -1), size, window)


def _starts(size: int, window: int, step: int) -> Sequence[int]:
    """Return where windows begin along an axis; the last one ends with the image."""
    return sorted({*range(0, size - window + 1, step), size - window})


def _say(yolo: YOLO, data: str, imgsz: int, name: str, objectness: float) -> None:
    """Score a model and print its figures."""
    head_of(yolo.model).objectness = objectness  # type: ignore[union-attr]
    found = score(yolo, data, imgsz, "val", "cpu")
    lost = "" if found.lost is None else f", lost {found.lost:.1f} %, {found.windows:g} windows"
    print(f"{name}: AP {found.ap:.1f}, AP50 {found.ap50:.1f}{lost}", flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(context, str(__doc__)))
