"""Milliseconds on this machine: of windows by their number, to choose by, and of whole predictions, to report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from ultralytics import YOLO

from mod_vision.eval.cost.latency import as_deployed, keep_memory, paired_latency
from mod_vision.eval.cost.memory import peak_megabytes
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.letterbox import forward_letterboxed
from mod_vision.yolo.run.predict import Postprocess

FEW, MANY = 0.1, 0.5  # shares of the pixels between which time is taken to grow evenly
NEARLY = 0.9999  # highest capacity that has windows
ROUNDS, REPEATS = 7, 3


class WindowTime(NamedTuple):
    """Milliseconds of a forward: `base` without windows, and `each` for a window of an image."""

    base: float
    each: float

    def of(self, windows: Any) -> Any:
        """Return the milliseconds of a number of windows."""
        return self.base + self.each * windows


class Time(NamedTuple):
    """Milliseconds of a prediction, from a decoded image to its detections, over images; and peak megabytes."""

    median: float
    p95: float
    megabytes: float


def time_windows(
    yolo: YOLO, sizes: Sequence[int], coarse: Sequence[float], image: torch.Tensor
) -> tuple[float, dict[tuple[int, float], WindowTime]]:
    """Time a model on windows.

    Args:
        yolo: The model.
        sizes: Sides of windows in px.
        coarse: Shares of the side of a coarse pass.
        image: (1, 3, H, W).

    Returns:
        Milliseconds of the dense forward, and those of windows by their side and coarse pass.
    """
    calls: dict[str, Any] = {}
    image = image.contiguous(memory_format=torch.channels_last)
    counts: dict[tuple[int, float], list[int]] = {}
    for size, share in product(sizes, coarse):
        counts[size, share] = []
        for name, (count, net) in zip(("few", "many"), _few_and_many(yolo, size, share, image), strict=True):
            counts[size, share].append(count)
            calls[f"{size} {share} {name}"] = partial(net, image)
    dense = _at(yolo, sizes[0], 0.0, 1.0)
    calls["dense"] = partial(dense, image)
    with torch.inference_mode():
        times = paired_latency(calls, ROUNDS, device=str(image.device))
    found = {}
    for (size, share), (few, many) in counts.items():
        low, high = (times[f"{size} {share} {name}"].median for name in ("few", "many"))
        each = max(high - low, 0.0) / max(many - few, 1)
        found[size, share] = WindowTime(max(low - each * few, 0.0), each)
    return times["dense"].median, found


def _few_and_many(yolo: YOLO, size: int, coarse: float, image: torch.Tensor) -> Iterator[tuple[int, Any]]:
    """Yield a model with few windows and one with more, and their numbers; the same if no more fit into the image."""
    capacity = FEW
    for _ in range(2):
        net = _at(yolo, size, coarse, capacity)
        with torch.inference_mode():
            net(image)
        plan: Any = head_of(net).entry.plan  # type: ignore[union-attr]
        yield plan.width, net
        capacity = min(max(MANY, (plan.width + 1) * plan.window_share), NEARLY)


def _at(yolo: YOLO, size: int, coarse: float, capacity: float) -> Any:
    """Return a deployed copy of a model with windows of another side, coarse pass and capacity."""
    net: Any = deepcopy(yolo.model)
    set_capacity(net, capacity)
    head: Any = head_of(net)
    head.entry.window, head.coarse = size, coarse
    return as_deployed(net, next(yolo.model.parameters()).device)


def time_predictions(
    models: Mapping[str, tuple[YOLO, int]], photos: Sequence[np.ndarray], conf: float = 0.25
) -> dict[str, Time]:
    """Time models image by image, all in turn.

    Args:
        models: Models and their image sizes by name.
        photos: (H, W, 3) uint8, BGR.
        conf: Lowest confidence of a detection.
    """
    deployed = {name: _Deployed(yolo, imgsz, conf) for name, (yolo, imgsz) in models.items()}
    taken = [_in_turn(deployed, photo) for photo in photos]
    found = {}
    for name, own in deployed.items():
        each = [times[name] for times in taken]
        call = partial(forward_letterboxed, own.net, photos[int(np.argsort(each)[len(each) // 2])], own.imgsz)
        device = str(next(own.net.parameters()).device)
        found[name] = Time(float(np.median(each)), float(np.percentile(each, 95)), peak_megabytes(call, device))
    return found


def time_photos(
    yolo: YOLO, imgsz: int, photos: Iterable[np.ndarray], conf: float = 0.25
) -> tuple[list[float], list[int]]:
    """Return the milliseconds of each photo, and its number of windows; arguments are as in `time_predictions`.

    Args:
        yolo: A model on windows.
        imgsz: Its image size.
        photos: The photos, one at a time.
        conf: Lowest confidence of a detection.
    """
    deployed = _Deployed(yolo, imgsz, conf)
    head: Any = head_of(deployed.net)
    ms, windows = [], []
    for photo in photos:
        ms.append(_in_turn({"": deployed}, photo)[""])
        windows.append(int(head.entry.plan.counts()[0]))
    return ms, windows


class _Deployed:
    """A model as it is deployed: a call takes a photo to its detections, which are read, so it waits."""

    def __init__(self, yolo: YOLO, imgsz: int, conf: float) -> None:
        keep_memory()
        self.imgsz, self.net = imgsz, as_deployed(deepcopy(yolo.model), next(yolo.model.parameters()).device)
        self.post = Postprocess(yolo, self.net.names, bool(getattr(self.net, "end2end", False)), conf)

    def __call__(self, photo: np.ndarray) -> None:
        self.post(forward_letterboxed(self.net, photo, self.imgsz), photo)


def _in_turn(deployed: Mapping[str, _Deployed], photo: np.ndarray) -> dict[str, float]:
    """Return the milliseconds that models take for a photo: medians of `REPEATS` turns after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in deployed}
    for turn in range(1 + REPEATS):
        for name, call in deployed.items():
            start = time.perf_counter()
            call(photo)
            if turn:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}
