"""What figures from a GPU hold for."""

from __future__ import annotations

import platform
import shutil
import subprocess
from datetime import date
from typing import Any

import torch
import ultralytics

from mod_vision import __version__
from mod_vision.eval.cost.conditions import cpu_name

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def machine(device: str) -> dict[str, Any]:
    """Return the device, its driver, the versions and the date."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "mod_vision": __version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
    }


def _driver() -> str:
    """Return the version of NVIDIA's driver, or why it is not known."""
    if shutil.which(DRIVER[0]) is None:
        return "unknown, there is no nvidia-smi"
    done = subprocess.run(DRIVER, capture_output=True, text=True, timeout=20, check=False)
    return " ".join((done.stdout or done.stderr).split()) or "unknown, nvidia-smi says nothing"
