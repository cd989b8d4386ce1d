"""Frames of still cameras: only what moved is computed, and what was found before stays where nothing has.

Each stream has a state of its own: its background, what was found, and which part of the picture is due to be computed
again. It lives with the predictor, or with a `Stream` of a loop of yours, and never in a checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from ultralytics.utils.metrics import box_iou

from mod_vision.routing.moving import LEAST
from mod_vision.routing.windows import MARGIN, WindowPlan
from mod_vision.routing.zone import GRID
from mod_vision.yolo.model.settings import check_refresh
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.background import Background
from mod_vision.yolo.run.deadline import Deadline
from mod_vision.yolo.run.restless import Restless
from mod_vision.yolo.run.turns import Turns, parts_of

if TYPE_CHECKING:  # Ultralytics is being imported when this is
    from ultralytics import YOLO
    from ultralytics.engine.results import Results

FIELDS = ("boxes", "masks", "keypoints", "obb")  # of results, what there is for each object
REFRESH = 30  # frames
MORE = 9  # squares around what has changed, four to each side
CONFIDENT = 0.25  # score of objects that are followed in each frame where the picture never comes to rest
SAME = 0.5  # IoU from which on a box is that of an object which was found anew
MOVED = 0.75  # worth of what moved, between what is due and what has waited
LONG = 8  # frames of waiting for a deadline, after which nothing comes before

_given = threading.local()


class Look(NamedTuple):
    """What of a frame is to be computed.

    Attributes:
        worth: (GRID, GRID) float32, 0 where nothing is, else from LEAST to 1: more where it moved, and has waited long.
        sure: (GRID, GRID) bool, squares that no router is asked about.
    """

    worth: np.ndarray
    sure: np.ndarray

    @property
    def idle(self) -> bool:
        """Whether nothing is to be computed."""
        return not self.worth.any()


class Stream:
    """A still camera, frame by frame.

    Example: `stream = mod_vision.Stream(model)`, then `result = stream(frame)` for each frame.

    Args:
        model: A model on windows, with `refresh` or without. None if the frames are given to it otherwise.
        refresh: Frames after which each part of the picture is computed again at the latest; 0 is the model's own, or
            30.
        budget: Milliseconds that a frame may take; what does not fit waits for the next frames. 0 is no bound, None the
            model's own.
        predict: Arguments of `model.predict`, such as `imgsz` and `conf`.

    Raises:
        ValueError: If the model does not run on windows, or an argument is not valid.
    """

    def __init__(self, model: YOLO | None, refresh: int = 0, budget: float | None = None, **predict: Any) -> None:
        check_refresh(refresh, budget or 0.0)
        if predict.get("stream") or predict.get("source") is not None:
            raise ValueError("a Stream is given its frames one by one; leave out stream= and source=.")
        if model is not None:
            head = head_of(model.model)
            if head is None:
                raise ValueError("streams need a model that runs on windows; `mod-vision stream model=...` makes one.")
            refresh, budget = refresh or head.entry.refresh, head.entry.budget if budget is None else budget
        self.model, self.refresh, self.predict = model, refresh or REFRESH, predict
        self.deadline = Deadline(budget) if budget else None
        self.zone: np.ndarray | None = None  # (GRID, GRID) bool, None for all of the picture
        self.reset()

    def __call__(self, frame: np.ndarray) -> Results:
        """Return what there is in a frame, (H, W, 3) uint8 in BGR, as `predict` does; see `finish`.

        Raises:
            ValueError: If it is no such frame, such as None at the end of a video. The stream stays as it is.
        """
        assert self.model is not None
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or not frame.size:
            given = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else repr(frame)[:40]
            raise ValueError(f"a frame must be (H, W, channels) uint8, as cv2.VideoCapture reads it, got {given}.")
        with frames_of([self]):
            result: Results = self.model.predict(frame, **{"verbose": False, **self.predict})[0]
        return result

    def reset(self) -> None:
        """Forget everything: another camera, or the same from another place."""
        self.background = Background()
        self.shape: tuple[int, ...] = ()
        self.turns: Turns | None = None
        self._forget()

    def _forget(self) -> None:
        """Forget what was found, and what never came to rest."""
        self.restless = Restless([] if self.turns is None else self.turns.parts)
        self.found: dict[str, torch.Tensor] = {}
        self.features: list[torch.Tensor] = []  # of objects, for trackers that know them by what the head reads
        self.ages = np.zeros(0, int)
        self.boxes, self.scores = np.zeros((0, 4)), np.zeros(0)
        self.before = self.certain = np.zeros((GRID, GRID), bool)
        self.asked = np.ones((GRID, GRID), bool)
        self.waits = np.zeros((GRID, GRID), np.uint8)  # frames, of what did not fit into the time of those

    def look(self, frame: np.ndarray) -> Look | None:
        """Return what of a frame must be computed; None for all that the model would, in a new scene."""
        if frame.shape != self.shape:
            self.reset()
            self.shape = frame.shape
        changed = self.background.changed(frame)
        if changed is None or self.turns is None:
            self._forget()
            if self.turns is None or self.deadline is None or self.deadline.most() is None:
                return None
            changed = np.ones((GRID, GRID), bool)  # a whole frame would be late
        now = changed
        changed, self.before = now | self.before, now  # what leaves uncovers what was there before
        rests, turn = self.restless.take(now if self.zone is None else now & self.zone)
        known, others = self._moving_objects(changed)
        objects = known | (others & ~rests)
        moved = _around(changed & (_around(known) | ~rests)) | objects | turn
        moved &= True if self.zone is None else self.zone
        late = self.waits > 0
        due = self.turns.take(bool(moved.any() or late.any()))
        self.asked = moved | late | due
        self.certain = objects | due | (self.certain & late)
        waited = np.minimum(self.waits, LONG).astype(np.float32) / LONG
        least = np.where(moved, np.float32(MOVED), np.float32(LEAST))
        return Look(np.where(self.asked, least + (1 - least) * waited, np.float32(0)), self.certain)

    def _moving_objects(self, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the squares (GRID, GRID) bool of objects in which some have changed: of confident ones, of others."""
        scale = GRID / np.array(self.shape[1::-1] * 2)
        left, top, right, bottom = (self.boxes * scale).round().astype(int).clip(0, GRID - 1).T
        sums = cv2.integral(changed.astype(np.uint8))
        count = sums[bottom + 1, right + 1] - sums[top, right + 1] - sums[bottom + 1, left] + sums[top, left]
        known, others = np.zeros((2, GRID, GRID), bool)
        for i in np.flatnonzero(count):
            mask = known if self.scores[i] >= CONFIDENT else others
            mask[top[i] : bottom[i] + 1, left[i] : right[i] + 1] = True
        return known, others

    def finish(
        self, result: Results, plan: WindowPlan | None, image: int, window: int, most: int | None = None
    ) -> None:
        """Add to a result what was found before and lies where nothing was computed.

        The result gets `ages`, how many frames ago each object was found.

        Args:
            result: Result of the frame, changed in place.
            plan: Windows of the batch, None where whole images were run.
            image: Number of the image in the batch.
            window: Side in px of the windows that cover what moves.
            most: Windows that the frame was allowed, None for any number.
        """
        whole = plan is None or (plan.whole is not None and bool(plan.whole[image]))
        none = np.zeros(len(self.boxes), bool)
        self._join(result, none if whole or plan is None else self._kept(result, _boxes(result), plan))
        cut = plan is not None and not whole and most is not None and plan.width >= most
        waits = self.asked & ~_squares(result.windows, result.orig_shape) if cut else False
        self.waits = np.where(waits, np.minimum(self.waits, LONG) + 1, 0).astype(np.uint8)
        if self.turns is None and plan is not None:
            parts = parts_of(plan, window)
            parts = [part for part in parts if self.zone is None or self.zone[part].any()]
            self.turns, self.restless = Turns(parts, self.refresh), Restless(parts)

    def stay(self, result: Results) -> None:
        """Give an empty result, of a frame in which nothing was to be computed, what was found before; see `finish`."""
        result.windows, result.share = np.zeros((0, 4), np.float32), 0.0
        for name in FIELDS[2:]:
            if name in self.found and getattr(result, name) is None:
                result.update(**{name: self.found[name][:0]})
        self._join(result, np.ones(len(self.boxes), bool))

    def _join(self, result: Results, keep: np.ndarray) -> None:
        """Add those of the objects that were found before that are kept, (n,) bool, and remember what there is now."""
        fresh = {name: value.data for name in FIELDS if (value := getattr(result, name)) is not None}
        now, features = _boxes(result), list(getattr(result, "feats", ()))
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
        self.scores = _scores(result)
        result.ages = self.ages

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


def _objects(result: Results) -> Any:
    """Return the boxes of a result, upright or rotated, None if it has none."""
    return result.obb if result.boxes is None else result.boxes


def _boxes(result: Results) -> np.ndarray:
    """Return the corners of the upright boxes of a result, (n, 4)."""
    own = _objects(result)
    return np.zeros((0, 4)) if own is None else own.xyxy.cpu().numpy().astype(float).reshape(-1, 4)


def _scores(result: Results) -> np.ndarray:
    """Return the scores of a result, (n,)."""
    own = _objects(result)
    return np.zeros(0) if own is None else own.conf.cpu().numpy().astype(float)


def _around(squares: np.ndarray) -> np.ndarray:
    """Return squares and those around them, (GRID, GRID) bool."""
    return cv2.dilate(squares.astype(np.uint8), np.ones((MORE, MORE), np.uint8)) > 0


def _squares(windows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the squares of a picture of some height and width whose centre lies in a window, (GRID, GRID) bool."""
    mask = np.zeros((GRID, GRID), bool)
    ends = windows.astype(float) * GRID / np.array(shape[::-1] * 2)
    for left, top, right, bottom in np.ceil(ends - 0.5).astype(int).clip(0, GRID):
        mask[top:bottom, left:right] = True
    return mask


@contextmanager
def frames_of(streams: Sequence[Stream]) -> Iterator[None]:
    """Tell the next prediction of this thread which streams its images belong to; none within it, such as of crops."""
    before, _given.streams = getattr(_given, "streams", None), streams
    try:
        yield
    finally:
        _given.streams = before


def take_given() -> Sequence[Stream] | None:
    """Take the streams that the images of the prediction which begins belong to, None if that was not told."""
    streams: Sequence[Stream] | None = getattr(_given, "streams", None)
    _given.streams = None
    return streams
