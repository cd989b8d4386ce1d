"""A trained dense model into one that runs on windows: fitted, chosen, measured, and never sold at a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics import YOLO

from mod_vision import __version__
from mod_vision.conversion.choice import Setting, best_within, passes_of, settings_of
from mod_vision.conversion.parts import Parts, divide
from mod_vision.conversion.progress import Progress
from mod_vision.conversion.rows import Accuracy, Row, score, table
from mod_vision.conversion.seen import look_at
from mod_vision.conversion.timing import time_predictions, time_windows
from mod_vision.conversion.verdict import Verdict, verdict
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.windowed import on_windows
from mod_vision.routing.capacity import ceil_div
from mod_vision.routing.window_routers import WINDOW_ROUTERS
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.model.windows import head_of, look_rows, probed
from mod_vision.yolo.run.device import MIN_STRIDE, start
from mod_vision.yolo.run.images import evenly_spaced, read_images
from mod_vision.yolo.train.fit import labelled_batches
from mod_vision.yolo.train.fit_windows import STEPS, fit_windows

SIZES = (128, 192, 256, 320)  # px
SMALLER = (0.75, 0.5)  # of the image's side
TIMED = 32  # photos
OBJECTNESS = 0.25  # where a cell holds an object with a probability of 1/16, the odds of what is found are halved
ROUTERS = ("look", "stem")
TASKS = ("detect", "segment", "pose", "obb")


class Conversion(NamedTuple):
    """What a conversion gives.

    Attributes:
        model: The model on windows, worth it or not.
        rows: The table, the dense rows first.
        verdict: Whether it is worth it, and why.
        setting: How it runs.
        run: How it was run, and shall be.
    """

    model: YOLO
    rows: list[Row]
    verdict: Verdict
    setting: Setting
    run: RunSettings

    def table(self) -> str:
        """Return the table as text; a star marks the row that is meant."""
        return table(self.rows, f"batch 1, {self.run.device}, {self.run.threads} threads")


@dataclass
class _Job:
    """A conversion while it runs."""

    dense: YOLO
    data: str
    parts: Parts
    run: RunSettings
    wanted: Wanted
    steps: int
    progress: Progress
    routed: dict[str, YOLO]


def convert(
    model: Any,
    data: str,
    wanted: Wanted = Wanted(),  # noqa: B008  # frozen
    labels: bool = True,
    routers: Sequence[str] = ROUTERS,
    steps: int = STEPS,
    run: RunSettings = RunSettings(imgsz=0),  # noqa: B008  # frozen
    folder: str | Path = "runs/mod-vision-convert",
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
        folder: Where the work lies while it is done; the same call goes on there after it was stopped.

    Raises:
        FileNotFoundError: If model or data are missing.
        ValueError: If an argument is not valid, the model is for another task, is routed already or does not go with
            windows, or there are too few images.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not routers:
        raise ValueError("router= names none; there are look, stem and scout.")
    for router in routers:
        if router not in WINDOW_ROUTERS or not WINDOW_ROUTERS[router].learned or router == "prior":
            raise ValueError(f"routers to convert with are look, scout and stem, got {router!r}.")
    dense = load_model(model)
    if dense.task not in TASKS:
        raise ValueError(f"convert takes models for {', '.join(TASKS)}, this one is for {dense.task!r}.")
    _check_classes(dense, data)
    run = start(RunSettings(run.imgsz or trained_with(dense).imgsz, run.device, run.threads))
    dense = copy_model(dense)
    windowed = {router: _windowed(dense, router).to(run.device) for router in routers}  # refused now, or not at all
    dense.to(run.device)
    asked = {"data": str(Path(data).resolve()), "wanted": asdict(wanted), "labels": labels, "steps": steps}
    asked |= {"routers": list(routers), "run": asdict(run), "model": _mark(dense), "by": [__version__, OBJECTNESS]}
    progress = Progress(Path(folder), asked)
    parts = divide(data, Path(folder), None if labels else copy_model(dense).to(run.device), run.imgsz)
    if parts.taught:
        print("val has no labels: AP and lost objects are against the dense model's own detections", flush=True)
    job = _Job(dense, data, parts, run, wanted, steps, progress, windowed)
    for router in routers:
        print(f"training the router {router}; all other weights stay as they are", flush=True)
        _fit(job, router)
    print(f"choosing windows on {len(parts.kept)} images kept aside from training", flush=True)
    winners = _choose(job)
    print("measuring on val", flush=True)
    names = _names(winners)
    models = {name: _set(job, setting) for setting, name in names.items()}
    chosen = _asked_for(job, winners)
    dense_rows, rows = _rows(job, models)
    own = next(row for row in rows if row.name == names[chosen])
    decision = verdict(own, dense_rows, wanted.bound)
    own.name += " *"
    progress.finish()
    return Conversion(models[names[chosen]].to("cpu"), [*dense_rows, *rows], decision, chosen, run)


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
    own, theirs = getattr(net, "kpt_shape", None), described.get("kpt_shape")
    if own and theirs and list(own) != list(theirs):
        raise ValueError(f"the model has keypoints of kpt_shape {list(own)}, the data set {list(theirs)}.")


def _mark(yolo: YOLO) -> float:
    """Return a number that changes with the weights."""
    return float(sum(p.detach().double().abs().sum() for p in yolo.model.parameters()))


def _windowed(dense: YOLO, router: str) -> YOLO:
    """Return the model on windows with an untrained router."""
    net: Any = dense.model
    entry = 0
    if router == "stem":
        rows = net.yaml["backbone"] + net.yaml["head"]
        strides, _ = probed(net.model, rows, net.yaml.get("channels", 3))
        entry = look_rows(net.model, strides)
    return on_windows(dense, WindowSettings(router=router, entry=entry, objectness=OBJECTNESS))


def _fit(job: _Job, router: str) -> None:
    """Train a router."""
    yolo, file = job.routed[router], job.progress.folder / f"{router}.pt"
    batches = labelled_batches(yolo, job.parts.data, job.run.imgsz)
    fit_windows(yolo.model, batches, job.steps, resume=file)


def _choose(job: _Job) -> list[Setting]:
    """Return the settings for the three speed-ups, the slowest first; one can win more than once."""

    def find() -> list[Any]:
        settings: list[Setting] = []
        dense_ms = 0.0
        for router, yolo in job.routed.items():
            dense_ms, own = _settings(job, router, yolo)
            settings += own
        found = [best_within(settings, dense_ms / speedup) for speedup in job.wanted.speedups(dense_ms)]
        return [list(setting) for setting in found]

    return [Setting(*values) for values in job.progress.once("settings", find)]


def _kept_ap(job: _Job, setting: Setting | None) -> float:
    """Return the AP of a setting, or of the dense model, on the images kept aside."""

    def find() -> float:
        print(f"    {'dense' if setting is None else _name(setting)}, on the images kept aside", flush=True)
        yolo = job.dense if setting is None else _set(job, setting)
        return score(yolo, job.parts.data, job.run.imgsz, "test", job.run.device).ap

    return float(job.progress.once(f"kept {setting}", find))


def _settings(job: _Job, router: str, yolo: YOLO) -> tuple[float, list[Setting]]:
    """Return the milliseconds of the dense forward, and what can be chosen with a router."""
    set_capacity(yolo, 1e-3)  # one window: what the router says is all that is looked at
    seen = look_at(yolo, job.parts.data, job.run.imgsz)
    plan = seen[len(seen) // 2].plan
    head: Any = head_of(yolo.model)
    sizes = [s for s in SIZES if s % head.entry.cell == 0 and s <= min(plan.size) * plan.cell] or [min(SIZES)]
    image = torch.rand(
        1, yolo.model.yaml.get("channels", 3), *(n * plan.cell for n in plan.size), device=job.run.device
    )
    torch.set_num_threads(job.run.threads)  # scoring sets its own
    passes = [0.0] if yolo.task == "obb" else passes_of(seen, min(sizes))  # its boxes are not told from squares
    dense_ms, times = time_windows(yolo, sizes, passes, image)
    return dense_ms, settings_of(router, seen, dense_ms, times)


def _name(setting: Setting) -> str:
    """Return the name of a row."""
    coarse = f" + {setting.coarse:g}" if setting.coarse else ""
    return f"{setting.router} {setting.size}{coarse} at {100 * setting.share:.0f} %"


def _names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Return the names of the rows of settings that differ."""
    names: dict[Setting, str] = {}
    for setting in settings:
        name = _name(setting)
        names.setdefault(setting, name if name not in names.values() else f"{name}, {setting.threshold:.4g}")
    return names


def _set(job: _Job, setting: Setting) -> YOLO:
    """Return the model with a setting, in itself and in its YAML."""
    yolo = copy_model(job.routed[setting.router])
    head: Any = head_of(yolo.model)
    head.entry.window, head.coarse = setting.size, setting.coarse
    set_capacity(yolo, min(max(round(setting.share, 4), 1e-3), 0.999))
    net: Any = yolo.model
    net.yaml["mod"]["windows"] |= {"size": setting.size, "coarse": setting.coarse}
    head.entry.set_threshold(setting.threshold)
    head.entry.crowded = setting.crowded
    yolo.overrides["imgsz"] = job.run.imgsz
    yolo.ckpt["train_args"] = {"imgsz": job.run.imgsz, "data": job.data, "task": yolo.task}
    return yolo.to(job.run.device)


def _asked_for(job: _Job, winners: Sequence[Setting]) -> Setting:
    """Return the setting that is asked for: the middle one of a budget, or the fastest that loses little enough.

    What is lost is judged on the images kept aside.
    """
    wanted = job.wanted
    if wanted.budget or wanted.speedup:
        return winners[1]
    bound = wanted.bound
    assert bound is not None
    dense = _kept_ap(job, None)
    fits = [setting for setting in winners if dense - _kept_ap(job, setting) <= bound]
    return min(fits, key=lambda s: s.ms) if fits else max(winners, key=partial(_kept_ap, job))


def _rows(job: _Job, models: dict[str, YOLO]) -> tuple[list[Row], list[Row]]:
    """Return the table: dense, also on smaller images, and on windows."""
    scaled = [ceil_div(round(job.run.imgsz * scale), MIN_STRIDE) * MIN_STRIDE for scale in (1.0, *SMALLER)]
    sizes = list(dict.fromkeys(scaled))
    all_models = {f"dense at {size} px": (job.dense, size) for size in sizes}
    all_models |= {name: (yolo, job.run.imgsz) for name, yolo in models.items()}
    rows = []
    for name, (yolo, size) in all_models.items():

        def find(name: str = name, yolo: YOLO = yolo, size: int = size) -> dict[str, Any]:
            print(f"    {name}", flush=True)
            return asdict(score(yolo, job.parts.data, size, "val", job.run.device))

        rows.append(Row(name, size, Accuracy(**job.progress.once(f"val {name}", find))))
    photos = read_images(evenly_spaced(job.parts.kept, TIMED))
    torch.set_num_threads(job.run.threads)
    times = time_predictions(all_models, photos)
    for row in rows:
        row.ms, row.p95, row.megabytes = times[row.name]
    return rows[: len(sizes)], rows[len(sizes) :]
