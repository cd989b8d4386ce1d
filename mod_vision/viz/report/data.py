"""What the page shows: images with their routes and predictions at several capacities, and scores of the split."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mod_vision.errors import one_line
from mod_vision.eval.evaluate import Evaluation, evaluate_model
from mod_vision.routing import check_capacity, routed_layers
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.run_settings import ScoreSettings
from mod_vision.viz.report.image_ranking import ImageRanking, rank_images
from mod_vision.viz.routes import RouteMap, Windows, route_maps, stage_titles, total_levels, windows_of
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.device import torch_device
from mod_vision.yolo.run.images import evenly_spaced, image_names, read_image, some_images
from mod_vision.yolo.run.predict import Detections, predict_images


class Stop(NamedTuple):
    """A stop of the page's slider.

    Attributes:
        label: What the page calls it.
        capacity: Share of tokens, None for the thresholds that the checkpoint was saved with.
    """

    label: str
    capacity: float | None

    @property
    def dense(self) -> bool:
        """True at capacity 1, where nothing is skipped."""
        return self.capacity == 1


class Stage(NamedTuple):
    """A routed layer.

    Attributes:
        name: Its name in the model.
        blocks: How many blocks a patch passes in it at most.
        windowed: Whether it routes windows.
        title: What the page calls it.
    """

    name: str
    blocks: int
    windowed: bool = False
    title: str = ""


class AtStop(NamedTuple):
    """One image at one stop: its route maps, none at capacity 1, and the detections."""

    maps: list[RouteMap]
    found: Detections


class Picture(NamedTuple):
    """An image of the gallery: its name in the split, its pixels (H, W, 3) in BGR, and a look at each stop."""

    name: str
    image: np.ndarray
    looks: list[AtStop]


@dataclass(frozen=True)
class ReportSettings:
    """What the figures of a page depend on.

    Attributes:
        model: Checkpoint.
        data: Data YAML.
        images: Images of the gallery.
        conf: Lowest confidence of a box that is drawn.
        run: How the model is run and scored.
    """

    model: str
    data: str
    images: int
    conf: float
    run: ScoreSettings


@dataclass
class Content:
    """All that the page shows.

    Attributes:
        stops: Stops of the slider, from much compute to little.
        stages: Routed layers in forward order.
        pictures: Images of the gallery.
        evaluations: Scores at each stop, empty if there were none.
        ranking: The images of the split that say most, None without scores.
    """

    stops: list[Stop]
    stages: list[Stage]
    pictures: list[Picture]
    evaluations: list[Evaluation] = field(default_factory=list)
    ranking: ImageRanking | None = None

    @property
    def windowed(self) -> bool:
        """Whether the model runs on windows."""
        return self.stages[0].windowed

    @property
    def windows(self) -> list[Windows]:
        """The windows of all images at all stops; none of a model without."""
        maps = [look.maps for picture in self.pictures for look in picture.looks]
        return [windows for of_look in maps if (windows := windows_of(of_look)) is not None]

    @property
    def most(self) -> int:
        """The most that a patch can pass: blocks of all stages, or windows that compute a cell, of those shown."""
        if self.windowed:
            return max([1, *(windows.most for windows in self.windows)])
        return sum(stage.blocks for stage in self.stages)

    @property
    def levels(self) -> list[int]:
        """The numbers of blocks, or of windows, that a patch can pass."""
        if self.windowed:
            return list(range(self.most + 1))
        every = {self.most}
        for look in (look for look in self.pictures[0].looks if look.maps):
            dense = self.most - sum(layer.blocks for layer in look.maps)
            every |= {dense + level for level in total_levels(look.maps)}
        return sorted(every)

    def verdicts(self) -> list[str]:
        """Return for each stop what it costs and gains in words, empty without scores."""
        dense = next((i for i, stop in enumerate(self.stops) if stop.dense), None)
        if not self.evaluations:
            return ["" for _ in self.stops]
        against = None if dense is None else self.evaluations[dense]
        return [_verdict(evaluation, against) for evaluation in self.evaluations]


def _verdict(scored: Evaluation, dense: Evaluation | None) -> str:
    """Return AP and GFLOPs of a stop, beside those of the dense baseline if that was scored."""
    ap, gflops = 100 * scored.box["AP"], scored.cost.gflops
    if dense is None or dense is scored:
        return f"Over the split: box AP {ap:.1f}, {gflops:.2f} GFLOPs."
    return (
        f"Over the split: box AP {ap:.1f}, dense {100 * dense.box['AP']:.1f}; "
        f"{gflops:.2f} GFLOPs, dense {dense.cost.gflops:.2f}."
    )


def collect(settings: ReportSettings, capacities: Sequence[float], evaluate: bool) -> Content:
    """Score the model on the split at each stop, then look at the images of the gallery.

    Raises:
        FileNotFoundError: If model or data does not exist, or the split has no image.
        ValueError: If the model routes nothing, a capacity is out of range, or no image can be read.
    """
    yolo = load_model(settings.model)
    stops = find_stops(yolo, capacities)
    stages = [Stage(name, layer.depth, isinstance(layer, WindowedLayer)) for name, layer in routed_layers(yolo.model)]
    every = some_images(settings.data, sys.maxsize, settings.run.split)
    names = dict(zip(every, image_names(every)[1], strict=True))
    files = evenly_spaced(every, settings.images)
    evaluations: list[Evaluation] = []
    ranking = None
    if evaluate:
        evaluations = [_score(yolo, stop, stops, settings) for stop in stops]
        ranking = rank_images(evaluations[telling_stop(stops)], stops[telling_stop(stops)].capacity is None)
        ranked = {line.file for line in ranking.images} - {names[file] for file in files}
        files = [*files, *(file for file in every if names[file] in ranked)]
    shown = {names[file]: file for file in files}
    pictures = _look_at(yolo, shown, stops, settings)
    return Content(stops, _titled(stages, pictures), pictures, evaluations, ranking)


def _titled(stages: Sequence[Stage], pictures: Sequence[Picture]) -> list[Stage]:
    """Return stages with their titles, which those that skip somewhere tell by their maps."""
    maps = max((look.maps for look in pictures[0].looks), key=len)
    titles = dict(zip((layer.name for layer in maps), stage_titles(maps), strict=True))
    named = {stage.name: "windows" if stage.windowed else titles.get(stage.name, stage.name) for stage in stages}
    return [stage._replace(title=named[stage.name]) for stage in stages]


def find_stops(yolo: Any, capacities: Sequence[float]) -> list[Stop]:
    """Return the stops: the checkpoint's own thresholds if it has some, and the capacities in descending order.

    Raises:
        ValueError: If the model has no routed layer, a capacity is out of range, or nothing is routed at any.
    """
    layers = [layer for _, layer in routed_layers(yolo.model)]
    if not layers:
        raise ValueError("this model has no routed layer, so there is nothing to report.")
    stops = [Stop(f"{c:g}", c) for c in sorted({check_capacity(c) for c in capacities}, reverse=True)]
    if any(layer.threshold is not None for layer in layers):
        stops.insert(0, Stop("thresholds", None))
    if all(stop.dense for stop in stops):
        raise ValueError("at capacity 1 nothing is skipped; give at least one below it, such as capacity=1,0.5.")
    return stops


def telling_stop(stops: Sequence[Stop]) -> int:
    """Return the stop at which images are ranked: the thresholds, or the lowest capacity, where most is skipped."""
    return 0 if stops[0].capacity is None else len(stops) - 1


def _at(yolo: Any, stop: Stop, device: str) -> Any:
    """Return a copy of the model at a stop: scoring and predicting fuse layers, which cannot be undone."""
    model = copy_model(yolo)
    if stop.capacity is not None:
        set_capacity(model, stop.capacity)
    model.model.to(torch_device(device))
    return model


def _score(yolo: Any, stop: Stop, stops: Sequence[Stop], settings: ReportSettings) -> Evaluation:
    """Score the model on the split at a stop."""
    print(f"[{stops.index(stop) + 1}/{len(stops)}] scoring at {describe(stop)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:  # Ultralytics makes one, whatever it is told
        return evaluate_model(_at(yolo, stop, settings.run.device), settings.data, settings.run, project=folder)


def describe(stop: Stop) -> str:
    """Return a stop as words of a sentence."""
    return "its own thresholds" if stop.capacity is None else f"capacity {stop.label}"


def _look_at(yolo: Any, files: Mapping[str, Path], stops: Sequence[Stop], settings: ReportSettings) -> list[Picture]:
    """Route and predict the images that can be read, at each stop."""
    pictures = []
    for name, file in files.items():
        try:
            pictures.append(Picture(name, read_image(file), []))
        except (OSError, ValueError) as error:
            print(f"left out: {one_line(error)}", flush=True)
    if not pictures:
        raise ValueError(f"none of the {len(files)} images of {settings.data} can be read.")
    run, images = settings.run, [picture.image for picture in pictures]
    for number, stop in enumerate(stops, 1):
        print(f"[{number}/{len(stops)}] routing {len(images)} images at {describe(stop)}", flush=True)
        model = _at(yolo, stop, run.device)
        maps = [[] if stop.dense else route_maps(model, image, run.imgsz) for image in images]
        found = predict_images(model, images, run.imgsz, settings.conf, run.batch, run.device)
        for picture, look in zip(pictures, map(AtStop, maps, found), strict=True):
            picture.looks.append(look)
    return pictures
