"""Frames of still cameras: only what moved is computed, and what was found before stays where nothing has.

Each stream has a state of its own: its background, what was found, and which part of the picture is due to be computed
again. It lives with the predictor, or with a `Stream` of a loop of yours, and never in a checkpoint.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from ultralytics.utils.metrics import box_iou

from mod_vision.routing.placing import window_cells
from mod_vision.routing.windows import MARGIN, WindowPlan
from mod_vision.routing.zone import GRID
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.background import Background

if TYPE_CHECKING:  # Ultralytics is being imported when this is
    from ultralytics import YOLO
    from ultralytics.engine.results import Results

FIELDS = ("boxes", "masks", "keypoints", "obb")  # of results, what there is for each object
REFRESH = 30  # frames
MORE = 9  # squares around what has changed, four to each side
SAME = 0.5  # IoU from which on a box is that of an object which was found anew

_given = threading.local()


class Stream:
    """A still camera, frame by frame.

    Example: `stream = mod_vision.Stream(model)`, then `result = stream(frame)` for each frame.

    Args:
        model: A model on windows, with `refresh` or without. None if the frames are given to it otherwise.
        refresh: Frames after which each part of the picture is computed again at the latest; 0 is the model's own, or
            30.
        predict: Arguments of `model.predict`, such as `imgsz` and `conf`.

    Raises:
        ValueError: If the model does not run on windows, or `refresh` is below 0.
    """

    def __init__(self, model: YOLO | None, refresh: int = 0, **predict: Any) -> None:
        if refresh < 0:
            raise ValueError(
                f"refresh must be a number of frames of at least 1, or 0 for the model's own, got {refresh}."
            )
        if model is not None:
            head = head_of(model.model)
            if head is None:
                raise ValueError("streams need a model that runs on windows; `mod-vision stream model=...` makes one.")
            refresh = refresh or head.entry.refresh
        self.model, self.refresh, self.predict = model, refresh or REFRESH, predict
        self.reset()

    def __call__(self, frame: np.ndarray) -> Results:
        """Return what there is in a frame, (H, W, 3) uint8 in BGR, as `predict` does; see `finish`."""
        assert self.model is not None
        with _frames_of([self]):
            result: Results = self.model.predict(frame, **{"verbose": False, **self.predict})[0]
        return result

    def reset(self) -> None:
        """Forget everything: another camera, or the same from another place."""
        self.background = Background()
        self.shape: tuple[int, ...] = ()
        self._forget()
        self.parts: list[tuple[slice, slice]] = []
        self.next = 0

    def _forget(self) -> None:
        """Forget what was found."""
        self.found: dict[str, torch.Tensor] = {}
        self.features: list[torch.Tensor] = []  # of objects, for trackers that know them by what the head reads
        self.ages = np.zeros(0, int)
        self.boxes = np.zeros((0, 4))
        self.before = np.zeros((GRID, GRID), bool)

    def moved(self, frame: np.ndarray) -> np.ndarray | None:
        """Return which squares of a frame must be computed, (GRID, GRID) bool; None for all, in a new scene."""
        if frame.shape != self.shape:
            self.reset()
            self.shape = frame.shape
        changed = self.background.changed(frame)
        if changed is None or not self.parts:
            self._forget()
            return None
        now = changed
        changed, self.before = now | self.before, now  # what leaves uncovers what was there before
        mask = cv2.dilate(changed.astype(np.uint8), np.ones((MORE, MORE), np.uint8))
        scale = GRID / np.array(self.shape[1::-1] * 2)
        for left, top, right, bottom in (self.boxes * scale).round().astype(int).clip(0, GRID):
            if changed[top : bottom + 1, left : right + 1].any():
                mask[top : bottom + 1, left : right + 1] = 1  # all of an object that moves
        for _ in range(math.ceil(len(self.parts) / self.refresh)):
            mask[self.parts[self.next % len(self.parts)]] = 1
            self.next += 1
        return mask > 0

    def finish(self, result: Results, plan: WindowPlan | None, image: int, window: int) -> None:
        """Add to a result what was found before and lies where nothing was computed.

        The result gets `ages`, how many frames ago each object was found, and `windows`, what was computed.

        Args:
            result: Result of the frame, changed in place.
            plan: Windows of the batch, None where whole images were run.
            image: Number of the image in the batch.
            window: Side in px of the windows that cover what moves.
        """
        whole = plan is None or (plan.whole is not None and bool(plan.whole[image]))
        fresh = {name: value.data for name in FIELDS if (value := getattr(result, name)) is not None}
        now = _boxes(result)
        features = list(getattr(result, "feats", ()))
        keep = np.zeros(len(self.boxes), bool) if whole or plan is None else self._kept(result, now, plan)
        if keep.any():
            which = torch.from_numpy(np.flatnonzero(keep))
            old = {name: value[which.to(value.device)] for name, value in self.found.items()}
            joined = {name: torch.cat((fresh[name], old[name])) if name in fresh else old[name] for name in old}
            result.update(**joined)
            fresh |= joined
            if self.features:
                features += [self.features[i] for i in np.flatnonzero(keep)]
                result.feats = torch.stack(features)
        self.ages = np.concatenate((np.zeros(len(now), int), self.ages[keep] + 1))
        self.features = features
        self.found, self.boxes = fresh, np.concatenate((now, self.boxes[keep]))
        result.ages = self.ages
        if not self.parts and plan is not None:
            self.parts = _parts(plan, window)

    def _kept(self, result: Results, now: np.ndarray, plan: WindowPlan) -> np.ndarray:
        """Return which of the objects that were found before lie outside of the windows, and were not found anew."""
        if not len(self.boxes):
            return np.zeros(0, bool)
        height, width = result.orig_shape
        margin = MARGIN * max(height / (plan.size[0] * plan.cell), width / (plan.size[1] * plan.cell))
        centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        windows = result.windows.astype(float)
        low = np.where(windows[:, :2] > 0, windows[:, :2] + margin, 0)
        high = np.where(windows[:, 2:] < (width, height), windows[:, 2:] - margin, np.inf)
        within = (centres[:, None] >= low) & (centres[:, None] < high)
        inside = np.any(np.all(within, axis=2), axis=1)
        if not len(now):
            return ~inside
        again = box_iou(torch.from_numpy(self.boxes), torch.from_numpy(now)).numpy() > SAME
        return ~inside & ~again.any(1)


def _boxes(result: Results) -> np.ndarray:
    """Return the corners of the upright boxes of a result, (n, 4)."""
    own = result.obb if result.boxes is None else result.boxes
    return np.zeros((0, 4)) if own is None else own.xyxy.cpu().numpy().astype(float).reshape(-1, 4)


def _parts(plan: WindowPlan, window: int) -> list[tuple[slice, slice]]:
    """Return parts of the picture, in squares, each of which a window of a side in px covers."""
    lines = []
    for cells, side in zip(plan.size, window_cells(window, plan.size, plan.cell), strict=True):
        step = max(side - 1, 1)
        ends = [*range(0, max(cells - 1, 1), step), cells]
        lines.append([slice(*(int(end * GRID / cells + 0.5) for end in pair)) for pair in pairwise(ends)])
    return list(product(*lines))


@contextmanager
def _frames_of(streams: Sequence[Stream]) -> Iterator[None]:
    """Tell the predictions of this thread which streams their images belong to."""
    _given.streams = streams
    try:
        yield
    finally:
        _given.streams = None


def begin_streams(predictor: Any) -> None:
    """At the start of a prediction, forget the streams of the one before."""
    _compute_all(predictor)
    predictor.mod_streams = {}


def look_at_frames(predictor: Any) -> None:
    """Before a batch, find what moved in its frames, and have the model compute that alone."""
    _compute_all(predictor)  # after an embedding, or a stop within a frame
    predictor.mod_running = streams = _streams(predictor)
    if not streams:
        return
    head: Any = head_of(predictor.model.model)
    _, frames, _ = predictor.batch
    masks = [stream.moved(frame) for stream, frame in zip(streams, frames, strict=True)]
    if any(mask is not None for mask in masks):  # else all run as the model runs any image
        squares = np.stack([np.ones((GRID, GRID), bool) if mask is None else mask for mask in masks])
        device = next(predictor.model.model.parameters()).device
        predictor.mod_only = head.entry.only_where(torch.from_numpy(squares).to(device))
        predictor.mod_only.__enter__()


def _compute_all(predictor: Any) -> None:
    """Have the model compute all of a frame again."""
    if getattr(predictor, "mod_only", None) is not None:
        predictor.mod_only.__exit__(None, None, None)
    predictor.mod_only = None


def finish_frames(predictor: Any) -> None:
    """After a batch, give the results what was found before."""
    _compute_all(predictor)
    if not (streams := predictor.mod_running):
        return
    entry: Any = head_of(predictor.model.model).entry
    for i, (stream, result) in enumerate(zip(streams, predictor.results, strict=True)):
        stream.finish(result, entry.plan, i, entry.window)


def _streams(predictor: Any) -> list[Stream]:
    """Return the streams of the images of a batch, none where they are no frames or the model computes each anew.

    Raises:
        ValueError: If several frames of one video are in a batch.
    """
    if (given := getattr(_given, "streams", None)) is not None:
        return list(given)
    head = head_of(getattr(predictor.model, "model", None))
    mode = getattr(predictor.dataset, "mode", "image")
    if head is None or not head.entry.refresh or mode not in ("video", "stream"):
        return []
    paths = predictor.batch[0]
    if mode == "video" and len(paths) > 1:
        raise ValueError(
            f"a model with refresh={head.entry.refresh} takes the frames of a video one by one; set batch=1."
        )
    keys = [(i, path) for i, path in enumerate(paths)]
    known: dict[Any, Stream] = predictor.mod_streams
    predictor.mod_streams = {key: known.get(key) or Stream(None, head.entry.refresh) for key in keys}
    return list(predictor.mod_streams.values())
