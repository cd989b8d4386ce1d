"""Streams in Ultralytics' predictor: before a batch what is to be computed, after it what was found before."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ultralytics.engine.results import Results

from mod_vision.routing.moving import Moved
from mod_vision.routing.zone import GRID, mask_of
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.stream import Look, Stream, take_given


def begin_streams(predictor: Any) -> None:
    """At the start of a prediction, forget the streams of the one before, and take those that it is given."""
    _compute_all(predictor)
    predictor.mod_streams, predictor.mod_running = {}, []
    predictor.mod_given = take_given()
    if not predictor.done_warmup:  # a new predictor: the model or what is asked of it has changed
        for stream in predictor.mod_given or ():
            stream.reset()
    if head_of(getattr(predictor.model, "model", None)) is not None and not hasattr(predictor, "mod_size"):
        predictor.mod_size = (0, 0)
        for step in (_preprocess, _inference, _postprocess):
            name = step.__name__[1:]
            setattr(predictor, name, functools.partial(step, predictor, getattr(predictor, name)))


def look_at_frames(predictor: Any) -> None:
    """Before a batch, find what is to be computed of its frames, and have the model compute that alone."""
    _compute_all(predictor)  # after an embedding, or a stop within a frame
    predictor.mod_began = time.perf_counter() if predictor.done_warmup else None  # the first frame takes longer
    predictor.mod_running = streams = _streams(predictor)
    if not streams:
        return
    _, frames, _ = predictor.batch
    head: Any = head_of(predictor.model.model)
    tell_zones(streams, head.entry)
    looks = [stream.look(frame) for stream, frame in zip(streams, frames, strict=True)]
    nothing = all(look is not None and look.idle for look in looks)
    predictor.mod_idle = nothing and not predictor.args.embed
    if any(look is not None for look in looks) and not predictor.mod_idle:  # else all run as the model runs any image
        deadline = streams[0].deadline
        most = None if deadline is None else deadline.most()
        predictor.mod_most = None if most is None else max(most // len(streams), 1)
        device = next(predictor.model.model.parameters()).device
        predictor.mod_only = head.entry.only_where(moved_in(looks, predictor.mod_most, device))
        predictor.mod_only.__enter__()


def tell_zones(streams: Sequence[Stream], entry: Any) -> None:
    """Tell streams that begin which zone they have."""
    if all(stream.turns is not None for stream in streams):
        return
    sums = entry.zones_for(len(streams))
    for i, stream in enumerate(streams):
        stream.zone = None if sums is None else mask_of(sums[i % len(sums)]).cpu().numpy()


def moved_in(looks: Sequence[Look | None], most: int | None, device: torch.device) -> Moved:
    """Return what is to be computed of a batch; all of the images of new scenes."""
    worth, sure = np.ones((GRID, GRID), np.float32), np.zeros((GRID, GRID), bool)
    every = [Look(worth, sure) if look is None else look for look in looks]
    worths, sures = (torch.from_numpy(np.stack(grids)).to(device) for grids in zip(*every, strict=True))
    return Moved(worths, sures, most)


def _compute_all(predictor: Any) -> None:
    """Have the model compute all of a frame again."""
    if getattr(predictor, "mod_only", None) is not None:
        predictor.mod_only.__exit__(None, None, None)
    predictor.mod_only = predictor.mod_most = None
    predictor.mod_idle = False


def finish_frames(predictor: Any) -> None:
    """After a batch, give the results what was found before."""
    idle, most = predictor.mod_idle, predictor.mod_most
    _compute_all(predictor)
    if not (streams := predictor.mod_running):
        return
    entry: Any = head_of(predictor.model.model).entry
    for i, (stream, result) in enumerate(zip(streams, predictor.results, strict=True)):
        if idle:
            stream.stay(result)
        else:
            stream.finish(result, entry.plan, i, entry.window, most)
    deadline, plan = streams[0].deadline, entry.plan
    if deadline is not None and not idle and plan is not None and predictor.mod_began is not None:
        windows = plan.shares() / plan.window_share  # as a whole, an image counts like the windows that it would take
        deadline.add(float(windows.sum()), 1e3 * (time.perf_counter() - predictor.mod_began))


def _preprocess(predictor: Any, own: Any, images: Any) -> torch.Tensor:
    """Return images as the model takes them; where nothing of them is computed, only their size."""
    if predictor.mod_idle:
        return torch.empty((len(images), 0, *predictor.mod_size))
    made: torch.Tensor = own(images)
    predictor.mod_size = made.shape[2:]
    return made


def _inference(predictor: Any, own: Any, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return the output of the model, None where nothing is computed."""
    return None if predictor.mod_idle else own(images, *args, **kwargs)


def _postprocess(predictor: Any, own: Any, outputs: Any, images: torch.Tensor, frames: Any, **kwargs: Any) -> Any:
    """Return the results, empty ones where nothing was computed."""
    if not predictor.mod_idle:
        return own(outputs, images, frames, **kwargs)
    return [nothing_in(frame, path, predictor) for frame, path in zip(frames, predictor.batch[0], strict=True)]


def nothing_in(frame: np.ndarray, path: str, predictor: Any) -> Results:
    """Return a result without an object, for a predictor that knows names and task."""
    key, columns = ("obb", 7) if predictor.args.task == "obb" else ("boxes", 6)
    none = torch.zeros(0, columns, device=getattr(predictor, "device", None))
    return Results(frame, path=path, names=predictor.model.names, **{key: none})


def _streams(predictor: Any) -> list[Stream]:
    """Return the streams of the images of a batch, none where they are no frames or the model computes each anew.

    Raises:
        ValueError: If several frames of one video are in a batch.
    """
    if predictor.mod_given is not None:
        return list(predictor.mod_given)
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
    predictor.mod_streams = {key: known.get(key) or Stream(None, head.entry.refresh, head.entry.budget) for key in keys}
    return list(predictor.mod_streams.values())
