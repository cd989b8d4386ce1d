"""Frames of a still camera through a model that tells its routes: only what moved is run, as `yolo predict` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mod_vision.viz.traced import Trace, TracedModel
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.predict import Postprocess
from mod_vision.yolo.run.stream import Look, Stream
from mod_vision.yolo.run.stream_hooks import moved_in, nothing_in, tell_zones
from mod_vision.yolo.run.window_results import tell


class Camera:
    """One camera, frame by frame. A deadline is left out: a picture is drawn of each frame, which takes longer.

    Args:
        traced: A model that `has_streams`.
        postprocess: What turns its outputs into results, of which what stands is kept.
    """

    def __init__(self, traced: TracedModel, postprocess: Postprocess) -> None:
        self.traced, self.postprocess, self.entry = traced, postprocess, _entry(traced)
        self.stream = Stream(None, self.entry.refresh)
        self._look: Look | None = None

    def look(self, frame: np.ndarray) -> tuple[Trace, Any]:
        """Run a frame (H, W, 3); return its trace, and its results with what was found before and stands."""
        tell_zones([self.stream], self.entry)
        self._look = self.stream.look(frame)
        with self._moved():
            trace = self.traced.trace(frame)
        if self._idle:  # a prediction runs nothing; the trace is for the picture
            result: Any = nothing_in(frame, "", self.postprocess.predictor)
            self.stream.stay(result)
            return trace, result
        result, plan = self.postprocess(trace.forward, frame), self.entry.plan
        tell([result], plan)
        self.stream.finish(result, plan, 0, self.entry.window)
        return trace, result

    def gflops(self, trace: Trace) -> tuple[float, float] | None:
        """Return what the last frame cost, as `TracedModel.gflops`."""
        with self._moved():
            found = self.traced.gflops(trace)
        return (0.0, found[1]) if self._idle and found is not None else found

    @property
    def _idle(self) -> bool:
        """Whether nothing of the last frame had to be computed."""
        return self._look is not None and self._look.idle

    @contextmanager
    def _moved(self) -> Iterator[None]:
        """Have the model compute what moved in the last frame alone."""
        if self._look is None:
            yield
        else:
            device = next(self.traced.yolo.model.parameters()).device  # type: ignore[attr-defined]
            with self.entry.only_where(moved_in([self._look], None, device)):
                yield


def has_streams(traced: TracedModel) -> bool:
    """Return whether a model computes what moved alone, in frames of still cameras."""
    entry = _entry(traced)
    return entry is not None and bool(entry.refresh)


def _entry(traced: TracedModel) -> Any:
    """Return the layer that places the windows, None of other models, and of exports."""
    head = head_of(getattr(getattr(traced, "yolo", None), "model", None))
    return head and head.entry
