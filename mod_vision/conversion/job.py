"""A conversion while it runs: the model, its data, and what was found so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ultralytics import YOLO

from mod_vision.conversion.choice import Setting
from mod_vision.conversion.parts import Parts
from mod_vision.conversion.progress import Progress
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.windowed import on_windows
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.blocks.windows import ENTRIES
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of, look_rows, probed
from mod_vision.yolo.model.zone import set_zone
from mod_vision.yolo.train.fit import labelled_batches
from mod_vision.yolo.train.fit_windows import fit_windows

OBJECTNESS = 0.5  # where a cell holds such an object with a probability of a quarter, the odds of one are halved


@dataclass
class Job:
    """A conversion while it runs.

    Attributes:
        dense: The dense model.
        data: Data YAML that is asked for.
        parts: Its images, divided.
        run: How it is run.
        wanted: What is asked for.
        steps: Batches that each router is trained on.
        progress: What was found so far.
        routed: The models on windows by their routers.
        zone_filter: The zone that alone counts, None for the whole picture.
    """

    dense: YOLO
    data: str
    parts: Parts
    run: RunSettings
    wanted: Wanted
    steps: int
    progress: Progress
    routed: dict[str, YOLO]
    zone_filter: ZoneFilter | None = None


def with_router(dense: YOLO, router: str) -> YOLO:
    """Return the model on windows with an untrained router."""
    net: Any = dense.model
    entry = 0
    if router == "stem":
        rows = net.yaml["backbone"] + net.yaml["head"]
        strides, _ = probed(net.model, rows, net.yaml.get("channels", 3))
        rows_before = look_rows(net.model, strides)
        entry = next((i for i in range(rows_before, 0, -1) if type(net.model[i]) in ENTRIES), rows_before)
    return on_windows(dense, WindowSettings(router=router, entry=entry, objectness=OBJECTNESS))


def fit_router(job: Job, router: str) -> None:
    """Train a router, on whole images; afterwards it looks at the zone alone."""
    yolo, file = job.routed[router], job.progress.folder / f"{router}.pt"
    batches = labelled_batches(yolo, job.parts.data, job.run.imgsz)
    fit_windows(yolo.model, batches, job.steps, resume=file)
    if job.zone_filter is not None:
        set_zone(yolo, [job.zone_filter.zone])


def name_of(setting: Setting) -> str:
    """Return the name of a row."""
    coarse = f" + {setting.coarse:g}" if setting.coarse else ""
    return f"{setting.router} {setting.size}{coarse} at {100 * setting.share:.0f} %"


def names_of(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Return the names of the rows of settings that differ."""
    names: dict[Setting, str] = {}
    for setting in settings:
        name = name_of(setting)
        names.setdefault(setting, name if name not in names.values() else f"{name}, {setting.threshold:.9g}")
    return names


def with_setting(job: Job, setting: Setting) -> YOLO:
    """Return the model with a setting, in itself and in its YAML."""
    yolo = copy_model(job.routed[setting.router])
    head: Any = head_of(yolo.model)
    head.entry.window, head.coarse, head.doubt = setting.size, setting.coarse, setting.doubt
    set_capacity(yolo, min(max(round(setting.share, 4), 1e-3), 0.999))
    net: Any = yolo.model
    net.yaml["mod"]["windows"] |= {"size": setting.size, "coarse": setting.coarse, "doubt": setting.doubt}
    head.entry.set_threshold(setting.threshold)
    head.entry.crowded = setting.crowded
    yolo.overrides["imgsz"] = job.run.imgsz
    yolo.ckpt["train_args"] = {"imgsz": job.run.imgsz, "data": job.data, "task": yolo.task}
    return yolo.to(job.run.device)
