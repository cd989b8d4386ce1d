"""What the figures of a benchmark hold for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mod_vision.eval.cost.backends import RUNTIMES, check_backend
from mod_vision.eval.cost.latency import keep_memory
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.run.device import start


def conditions(bench: BenchSettings) -> dict[str, Any]:
    """Set torch's threads, and return what figures hold for: the settings, the machine, the versions, the date.

    Raises:
        ValueError: If the backend cannot run on the device.
        ImportError: If the backend's runtime is not installed.
    """
    run = start(bench)
    check_backend(run.backend, run.device, run.dtype)
    missing = [name for name in RUNTIMES.get(run.backend, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"backend={run.backend} needs {missing[0]}: pip install {missing[0]}.")
    packages = ("torch", "ultralytics", *RUNTIMES.get(run.backend, ()))
    cuda = run.device.startswith("cuda")
    return {
        "imgsz": run.imgsz,
        "batch": run.batch,
        "device": torch.cuda.get_device_name(run.device) if cuda else cpu_name(),
        **({} if cuda else {"threads": run.threads, "freed memory": "kept" if keep_memory() else "given back"}),
        "backend": run.backend,
        "dtype": run.dtype,
        "repeats": run.repeats,
        "date": date.today().isoformat(),
        **{name: importlib.import_module(name).__version__ for name in packages},
    }


def cpu_name() -> str:
    """Return the CPU's name and the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor()}, {cores} cores"
