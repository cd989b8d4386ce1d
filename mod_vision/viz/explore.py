"""One model at any capacity, its dense baseline beside it: which patches of an image are skipped, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from mod_vision.eval.cost.latency import Latency, as_deployed, paired_latency
from mod_vision.routing import routed_layers
from mod_vision.viz.routes import crop_maps
from mod_vision.viz.traced import Trace, open_traced
from mod_vision.viz.video import Figures, Recording, figures_of
from mod_vision.viz.views import DEFAULT_VIEW, View, draw_view
from mod_vision.yolo.data.zones import Zone
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.model.zone import set_zone
from mod_vision.yolo.run.device import torch_device
from mod_vision.yolo.run.predict import Postprocess
from mod_vision.yolo.run.sources import Source, check_video, open_clip

NO_FRAME = "this video has no frame that can be read."
MAX_FRAME = 4096 * 2160  # pixels of a video: a small file can hold huge frames, each of which is drawn
ROUNDS = 3  # of timing: enough for a number that is looked at, few enough to be waited for


class ViewSettings(NamedTuple):
    """What is looked at, and how.

    Attributes:
        capacity: Share of tokens that pass the heavy blocks, below 1.
        view: mask, overlay, side or page.
        boxes: Whether to draw what is found.
        conf: Lowest confidence of that.
        zone: What is looked at alone, as `zones_of` gives it; None for what the model looks at as it was saved.
    """

    capacity: float
    view: str = DEFAULT_VIEW
    boxes: bool = True
    conf: float = 0.25
    zone: list[Zone] | None = None


class Explored(NamedTuple):
    """One picture: what was drawn, what was skipped and what it cost.

    Attributes:
        picture: (H, W, 3) uint8 in BGR.
        figures: Skipped shares and executed GFLOPs.
        latency: Milliseconds of the network.
        dense: Those of its dense baseline.
    """

    picture: np.ndarray
    figures: Figures
    latency: Latency
    dense: Latency


class Explorer:
    """A routed model and its dense baseline, as they are deployed.

    Args:
        model: A `YOLO` object, a .pt file, or a model YAML.
        imgsz: Longer side of the input in pixels.
        device: As in Ultralytics.

    Raises:
        FileNotFoundError: If the model does not exist.
        ValueError: If it has another form, or routes nothing.
    """

    def __init__(self, model: Any, imgsz: int, device: str = "cpu") -> None:
        yolo = load_model(model)
        if not isinstance(yolo.model, torch.nn.Module):
            raise ValueError(f"model {yolo.model} is an export, which has one capacity; use the checkpoint (.pt).")
        self.yolo = copy_model(yolo)
        self.yolo.ckpt = yolo.ckpt  # none tells of a model without training
        self.device = torch_device(device)
        self.yolo.model = as_deployed(self.yolo.model, self.device)
        self.dense = deepcopy(self.yolo.model)
        set_capacity(self.dense, 1.0)
        self.traced = open_traced(self.yolo, imgsz)
        head = head_of(self.yolo.model)
        self.windowed, self.coarse = head is not None, bool(head and head.coarse)
        self.trained = head.entry.router.trained if head else bool(yolo.ckpt)
        self.capacity = mean(layer.capacities[0] for _, layer in routed_layers(self.yolo.model))  # as it was saved
        self._own_zone = self.yolo.model.yaml["mod"]["windows"].get("zone") if head else None
        self._finders: dict[float, Postprocess] = {}

    def look(self, image: np.ndarray, settings: ViewSettings) -> Explored:
        """Draw the routes of an image (H, W, 3), uint8 in BGR, and time the network on it.

        Raises:
            ValueError: If a setting is not valid.
        """
        view, trace, figures = self._view(image, settings)
        batch = trace.forward.batch.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            times = paired_latency(
                {"routed": lambda: self.yolo.model(batch), "dense": lambda: self.dense(batch)},
                ROUNDS,
                warmup=1,
                device=str(self.device),
            )
        return Explored(view.compose(), figures, times["routed"], times["dense"])

    def film(
        self, video: Path, out: Path, settings: ViewSettings, max_frames: int, progress: Callable[[int, int], object]
    ) -> Figures:
        """Draw the routes of the first `max_frames` frames of a video into `out`, and return the mean figures.

        Args:
            video: The video file.
            out: The video to write; its suffix tells the format, as for `Recording`.
            settings: What is drawn.
            max_frames: Most frames.
            progress: Is told the number of frames that are done, and of all.

        Raises:
            OSError: If the video cannot be written.
            ValueError: If it is none, or has no frame, or too large ones, or a setting is not valid.
        """
        try:
            clip = open_clip(Source(video, "video"))
        except FileNotFoundError:  # what Ultralytics raises for one that does not open, with its path
            raise ValueError(NO_FRAME) from None
        frame_size(video)
        total = min(clip.total or max_frames, max_frames)
        seen = []
        with Recording(out, clip, max_frames) as recording:
            for number, (image,) in enumerate(islice(clip.frames, max_frames), 1):
                _check_frame(*image.shape[1::-1])  # which need not be the size that the file tells
                view, _, figures = self._view(image, settings)
                recording.add(view, figures)
                seen.append(figures)
                progress(number, total)
        if not seen:
            raise ValueError(NO_FRAME)
        return _mean(seen)

    def _view(self, image: np.ndarray, settings: ViewSettings) -> tuple[View, Trace, Figures]:
        """Run an image and draw it; the zone is set each time, so that of the last image does not stay."""
        if self.windowed:
            set_zone(self.yolo.model, self._own_zone if settings.zone is None else settings.zone)
        elif settings.zone is not None:
            raise ValueError("zone: this model does not run on windows, so it looks at the whole picture.")
        set_capacity(self.yolo.model, settings.capacity)
        trace = self.traced.trace(image)
        maps = crop_maps(trace)
        result = self._find(settings.conf)(trace.forward, image) if settings.boxes else None
        figures = figures_of(maps, self.traced.gflops(trace))
        return draw_view(image, maps, settings.view, result), trace, figures

    def _find(self, conf: float) -> Postprocess:
        """Return what finds objects with confidences of at least `conf`, made once."""
        if conf not in self._finders:
            self._finders[conf] = self.traced.postprocess(conf)
        return self._finders[conf]


def frame_size(video: Path) -> tuple[int, int] | None:
    """Return width and height of the frames of a video before one is decoded, None if they are not known.

    Raises:
        ValueError: If they are too large, or the file has no suffix of a video.
    """
    check_video(video)
    opened = cv2.VideoCapture(str(video))
    width, height = (int(opened.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    opened.release()
    _check_frame(width, height)
    return (width, height) if width > 0 and height > 0 else None


def _check_frame(width: int, height: int) -> None:
    """Refuse a frame that is too large."""
    if width * height > MAX_FRAME:
        raise ValueError(f"frames of {width} x {height} pixels are too large, a video may have 4096 x 2160.")


def _mean(seen: list[Figures]) -> Figures:
    """Return the mean of the figures of frames."""
    by_layer = {name: float(np.mean([figures.by_layer[name] for figures in seen])) for name in seen[0].by_layer}
    costs = [figures.gflops for figures in seen if figures.gflops]
    executed, dense = np.mean(costs, axis=0).tolist()
    counts = [figures.windows for figures in seen if figures.windows is not None]
    skipped, windows = float(np.mean([figures.skipped for figures in seen])), mean(counts) if counts else None
    return Figures(skipped, by_layer, (executed, dense), windows)
