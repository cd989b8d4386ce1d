"""An epoch of a training, dense and on windows: that it runs, how long a step takes, how much memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mod_vision.eval.cost.latency import wait_for
from mod_vision.eval.cost.memory import free_memory
from mod_vision.resources import PHOTOS
from mod_vision.yolo.model.capacity import load_at

WARMUP = 2  # first steps, which choose kernels


class Epoch(NamedTuple):
    """An epoch.

    Attributes:
        name: Model and capacity.
        steps: Batches.
        step_ms: Median milliseconds of a step but for the first two, loading of images left out; of all if there are no
            more.
        peak_mb: Megabytes (1e6 bytes) that torch allocated at most, None on a CPU.
        finite: Whether all losses were numbers.
    """

    name: str
    steps: int
    step_ms: float
    peak_mb: float | None
    finite: bool


class Watch:
    """Times the steps of a training, and looks at its losses."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.finite = True

    def begin(self, trainer: Any) -> None:
        """Start the clock."""
        wait_for(trainer.device)
        self.began = time.perf_counter()

    def end(self, trainer: Any) -> None:
        """Stop the clock."""
        wait_for(trainer.device)
        self.times.append(1e3 * (time.perf_counter() - self.began))
        self.finite &= bool(trainer.loss.isfinite().all())


def train_epoch(model: str, capacity: float, device: str, **settings: Any) -> Epoch:
    """Train a model for an epoch on the embedded photos, as `yolo train` does, and validate it.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Its capacity, 1 for the dense baseline.
        device: Name of the device in torch.
        settings: Arguments of `yolo train`, such as `imgsz`.
    """
    yolo: Any = load_at(model, capacity)
    watch, cuda = Watch(), device.startswith("cuda")
    yolo.add_callback("on_train_batch_start", watch.begin)
    yolo.add_callback("on_train_batch_end", watch.end)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        yolo.train(
            data=PHOTOS,
            epochs=1,
            device=device.removeprefix("cuda:"),
            plots=False,
            verbose=False,
            project=str(Path(folder).resolve()),
            **settings,
        )
    del yolo
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if cuda else None
    free_memory(device)
    times = watch.times[WARMUP:] or watch.times
    return Epoch(_name(model, capacity), len(watch.times), statistics.median(times), peak, watch.finite)


def _name(model: str, capacity: float) -> str:
    """Return what a row is called."""
    return f"{model} capacity {capacity:g}" if capacity < 1 else f"{model} dense baseline"
