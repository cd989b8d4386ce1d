"""What a conversion chooses: windows for three speed-ups, and which of them is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.conversion.choice import Setting, best_within, passes_of, settings_of, sparse
from mod_vision.conversion.job import Job, name_of, with_setting
from mod_vision.conversion.rows import score
from mod_vision.conversion.seen import look_at
from mod_vision.conversion.timing import time_predictions, time_windows
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import evenly_spaced, read_images

SIZES = (128, 192, 256, 320)  # px
TIMED = 8  # photos


def choose(job: Job) -> list[Setting]:
    """Return the settings for the three speed-ups, the slowest first; one can win more than once."""

    def find() -> list[Any]:
        settings: list[Setting] = []
        dense_ms = _dense_ms(job)
        for router, yolo in job.routed.items():
            settings += _settings(job, router, yolo, dense_ms)
        settings = sparse(settings)
        found = [best_within(settings, dense_ms / speedup) for speedup in job.wanted.speedups(dense_ms)]
        return [list(setting) for setting in found]

    key = f"settings for {job.wanted}, {list(job.routed)}, {job.run.threads} threads"
    return [Setting(*values) for values in job.progress.once(key, find)]


def _kept_ap(job: Job, setting: Setting | None) -> float:
    """Return the AP of a setting, or of the dense model, on the images kept aside."""

    def find() -> float:
        print(f"    {'dense' if setting is None else name_of(setting)}, on the images kept aside", flush=True)
        yolo = job.dense if setting is None else with_setting(job, setting)
        return score(yolo, job.parts.data, job.run.imgsz, "test", job.run.device, job.zone_filter).ap

    return float(job.progress.once(f"kept {setting}", find))


def _dense_ms(job: Job) -> float:
    """Return the milliseconds of the dense model, from a decoded image to its detections."""
    torch.set_num_threads(job.run.threads)
    photos = read_images(evenly_spaced(job.parts.kept, TIMED))
    return time_predictions({"dense": (job.dense, job.run.imgsz)}, photos)["dense"].median


def _settings(job: Job, router: str, yolo: YOLO, dense_ms: float) -> list[Setting]:
    """Return what can be chosen with a router; `dense_ms` is the time of the dense model, with all around it."""
    set_capacity(yolo, 1e-3)  # one window: what the router says is all that is looked at
    seen = look_at(yolo, job.parts.data, job.run.imgsz, zone_filter=job.zone_filter)
    plan = seen[len(seen) // 2].plan
    head: Any = head_of(yolo.model)
    sizes = [s for s in SIZES if s % head.entry.cell == 0 and s <= min(plan.size) * plan.cell] or [min(SIZES)]
    image = torch.rand(
        1, yolo.model.yaml.get("channels", 3), *(n * plan.cell for n in plan.size), device=job.run.device
    )
    torch.set_num_threads(job.run.threads)  # scoring sets its own
    passes = [0.0] if yolo.task == "obb" else passes_of(seen, min(sizes))  # its boxes are not told from squares
    forward_ms, times = time_windows(yolo, sizes, passes, image)
    around = max(dense_ms - forward_ms, 0.0)  # resizing the image, reading its detections
    times = {key: time._replace(base=time.base + around) for key, time in times.items()}
    return settings_of(router, seen, forward_ms, times)


def asked_for(job: Job, winners: Sequence[Setting]) -> Setting:
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
