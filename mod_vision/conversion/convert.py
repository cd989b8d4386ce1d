"""A trained dense model into one that runs on windows: fitted, chosen, measured, and never sold at a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics import YOLO

from mod_vision import __version__
from mod_vision.conversion.choice import Setting
from mod_vision.conversion.empty import Timed, time_val
from mod_vision.conversion.job import OBJECTNESS, Job, fit_router, names_of, with_router, with_setting
from mod_vision.conversion.parts import divide, state_of
from mod_vision.conversion.progress import Progress
from mod_vision.conversion.rows import Accuracy, Row, score, table
from mod_vision.conversion.timing import time_predictions
from mod_vision.conversion.verdict import Verdict, verdict
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.winners import asked_for, choose
from mod_vision.conversion.zone_objects import count_objects, zone_filter_of
from mod_vision.conversion.zoned import zoned
from mod_vision.routing.capacity import ceil_div
from mod_vision.routing.window_routers import WINDOW_ROUTERS
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.device import start, stride_of
from mod_vision.yolo.run.images import evenly_spaced, read_images
from mod_vision.yolo.train.fit_windows import STEPS

SMALLER = (0.75, 0.5)  # of the image's side
TIMED = 32  # photos
ROUTERS = ("look", "stem")
ALL = "all of the zone"  # the row of what `mod-vision zone` makes
TASKS = ("detect", "segment", "pose", "obb")


class Conversion(NamedTuple):
    """What a conversion gives.

    Attributes:
        model: The model on windows, worth it or not.
        rows: The table, the dense rows first.
        verdict: Whether it is worth it, and why.
        setting: How it runs.
        run: How it was run, and shall be.
        timed: What images of `val` take.
        progress: The work: its `finish` removes the folder, once the model is saved or nobody wants it.
    """

    model: YOLO
    rows: list[Row]
    verdict: Verdict
    setting: Setting
    run: RunSettings
    timed: Timed
    progress: Progress

    def table(self) -> str:
        """Return the table as text, a star marks the row that is meant, and a line about empty images."""
        rows = table(self.rows, f"batch 1, {self.run.device}, {self.run.threads} threads")
        return f"{rows}\n{self.timed.sentence()}"


def convert(
    model: Any,
    data: str,
    wanted: Wanted = Wanted(),  # noqa: B008  # frozen
    labels: bool = True,
    routers: Sequence[str] = ROUTERS,
    steps: int = STEPS,
    run: RunSettings = RunSettings(imgsz=0),  # noqa: B008  # frozen
    folder: str | Path = "runs/mod-vision-convert",
    zone: Any = None,
) -> Conversion:
    """Convert a trained dense model into one that runs on windows; all of its weights stay as they are.

    Routers are trained on a part of the training split. Router, size of windows, threshold and coarse pass are chosen
    on the rest of it, by the objects that are lost and by measured time. `val` is for the table alone.

    Args:
        model: A `YOLO` object or a .pt file, trained for one of `TASKS`; it stays as it is.
        data: Data YAML.
        wanted: Budget, speed-up or loss that is asked for.
        labels: False takes the dense model's own confident detections for labels of the training images, and of `val`
            if that has none.
        routers: Routers to train and choose from: `look`, `scout` and `stem`.
        steps: Batches that each is trained on.
        run: How it is run; imgsz 0 is the size that the model was trained at.
        folder: Where the work lies, and stays for a call that asks for something else: it takes the trained routers.
            The same call goes on there after it was stopped.
        zone: The part of the picture that it shall look at, as `set_zone` takes it; None is all. What lies outside
            counts neither in the choice nor in the table, for any model.

    Raises:
        FileNotFoundError: If model, data or the file of a zone are missing.
        ValueError: If an argument is not valid, the model is for another task, is routed already or does not go with
            windows, there are too few images, or nothing that is labelled lies in the zone.
    """
    _check_routers(routers, steps)
    zone_filter = zone_filter_of(zone)
    dense = load_model(model)
    if dense.task not in TASKS:
        raise ValueError(f"convert takes models for {', '.join(TASKS)}, this one is for {dense.task!r}.")
    run = start(RunSettings(run.imgsz or trained_with(dense).imgsz, run.device, run.threads))
    dense = copy_model(dense)
    routed = {router: with_router(dense, router).to(run.device) for router in routers}  # refused now, or not at all
    _check_classes(dense, data)
    dense.to(run.device)
    asked = {"data": str(Path(data).resolve()), "labels": labels, "steps": steps, "imgsz": run.imgsz}
    asked |= {"device": run.device, "state": state_of(data), "zone": zone_filter and zone_filter.zone}
    asked |= {"model": _mark(dense), "by": [__version__, OBJECTNESS, Setting._fields]}
    progress = Progress(Path(folder), asked)
    parts = divide(data, Path(folder), None if labels else copy_model(dense).to(run.device), run.imgsz)
    if parts.taught:
        print("val has no labels: AP and lost objects are against the dense model's own detections", flush=True)
    if zone_filter is not None:
        count_objects(dense, parts.data, run.imgsz, zone_filter, data)
    job = Job(dense, data, parts, run, wanted, steps, progress, routed, zone_filter)
    for router in routers:
        print(f"training the router {router}; all other weights stay as they are", flush=True)
        fit_router(job, router)
    print(f"choosing windows on {len(parts.kept)} images kept aside from training", flush=True)
    winners = choose(job)
    print("measuring on val", flush=True)
    return _measured(job, winners)


def _check_routers(routers: Sequence[str], steps: int) -> None:
    """Refuse routers that cannot be trained.

    Raises:
        ValueError: If there are none, one learns nothing from labels, or there is no step to train it in.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not routers:
        raise ValueError("router= names none; there are look, stem and scout.")
    for router in routers:
        if router not in WINDOW_ROUTERS or not WINDOW_ROUTERS[router].learned or router == "prior":
            raise ValueError(f"routers to convert with are look, scout and stem, got {router!r}.")


def _check_classes(dense: YOLO, data: str) -> None:
    """Refuse data of other classes or keypoints.

    Raises:
        ValueError: If the numbers of them differ.
    """
    described, net = check_data(data, "train"), dense.model
    if len(dense.names) != described["nc"]:
        raise ValueError(
            f"the model has {len(dense.names)} classes, the data set {described['nc']}; train on this data set first."
        )
    seen, given = getattr(net, "yaml", {}).get("channels", 3), described.get("channels", 3)
    if seen != given:
        raise ValueError(f"the model has {seen} channels, the images of the data set {given}; set channels: {seen}.")
    own, theirs = getattr(net, "kpt_shape", None), described.get("kpt_shape")
    if own and theirs and list(own) != list(theirs):
        raise ValueError(f"the model has keypoints of kpt_shape {list(own)}, the data set {list(theirs)}.")


def _mark(yolo: YOLO) -> float:
    """Return a number that changes with the weights."""
    return float(sum(p.detach().double().abs().sum() for p in yolo.model.parameters()))


def _measured(job: Job, winners: Sequence[Setting]) -> Conversion:
    """Return what a conversion gives: the settings that were chosen, measured on `val`, and the verdict."""
    names = names_of(winners)
    models = {name: with_setting(job, setting) for setting, name in names.items()}
    chosen = asked_for(job, winners)
    dense_rows, rows = _rows(job, models, {name: str(setting) for setting, name in names.items()})
    own = next(row for row in rows if row.name == names[chosen])
    untrained = next((row for row in rows if row.name == ALL), None)
    decision = verdict(own, dense_rows, job.wanted.bound, job.wanted.allowed(dense_rows[0].ms), untrained)
    own.name += " *"
    model, all_rows = models[names[chosen]], [*dense_rows, *rows]
    timed = time_val(model, job.parts.data, job.run.imgsz)
    return Conversion(model.to("cpu"), all_rows, decision, chosen, job.run, timed, job.progress)


def _rows(job: Job, models: dict[str, YOLO], settings: dict[str, str]) -> tuple[list[Row], list[Row]]:
    """Return the table: dense, also on smaller images, and on windows; with a zone also all of it, untrained.

    `settings` are those of the models: other ones can have the same name.
    """
    stride = stride_of(job.dense.model)
    scaled = [ceil_div(round(job.run.imgsz * scale), stride) * stride for scale in (1.0, *SMALLER)]
    sizes = list(dict.fromkeys(scaled))
    all_models = {f"dense at {size} px": (job.dense, size) for size in sizes}
    photos = read_images(evenly_spaced(job.parts.kept, TIMED))
    if job.zone_filter is not None:
        height, width = photos[0].shape[:2]
        whole, _ = zoned(job.dense, [job.zone_filter.zone], job.run.imgsz, (width, height))
        models = {ALL: whole.to(job.run.device), **models}
    all_models |= {name: (yolo, job.run.imgsz) for name, yolo in models.items()}
    rows = []
    for name, (yolo, size) in all_models.items():

        def find(name: str = name, yolo: YOLO = yolo, size: int = size) -> dict[str, Any]:
            print(f"    {name}", flush=True)
            return asdict(score(yolo, job.parts.data, size, "val", job.run.device, job.zone_filter))

        rows.append(Row(name, size, Accuracy(**job.progress.once(f"val {settings.get(name, name)}", find))))
        if rows[0].accuracy.ap < 0:
            what = "no labelled object" if job.zone_filter is None else "no labelled object in the zone"
            raise ValueError(f"{job.data}: `val` has {what}, so nothing can be scored; label it first.")
    torch.set_num_threads(job.run.threads)
    times = time_predictions(all_models, photos)
    for row in rows:
        row.ms, row.p95, row.megabytes = times[row.name]
    return rows[: len(sizes)], rows[len(sizes) :]
