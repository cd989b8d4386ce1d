"""Where and at which size a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

from mod_vision.run_settings import RunSettings

MIN_STRIDE = 32
AnySettings = TypeVar("AnySettings", bound=RunSettings)


def torch_device(device: str) -> torch.device:
    """Return the device that Ultralytics means by `device`: cpu, 0, 0,1, mps, ...; by default a GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if device == "cpu":
        return torch.device("cpu")
    threads = torch.get_num_threads()
    try:
        return select_device(device, verbose=False)
    finally:
        torch.set_num_threads(threads)  # Ultralytics sets its own for a CPU


def start(run: AnySettings) -> AnySettings:
    """Set torch's CPU threads, and return the settings as they count: size rounded, device by its name in torch.

    Raises:
        ValueError: If there is no such device, there are several, or the size is not positive.
    """
    if "," in run.device:
        raise ValueError(f"device={run.device}: give one device; `yolo train` trains on several.")
    threads = run.threads or torch.get_num_threads()
    device = str(torch_device(run.device))
    torch.set_num_threads(threads)
    imgsz = round_imgsz(run.imgsz) if isinstance(run.imgsz, int) else input_size(run.imgsz, MIN_STRIDE)
    return replace(run, imgsz=imgsz, device=device, threads=threads)


def stride_of(net: Any) -> int:
    """Return the px of which the sides of a model's images are multiples."""
    return max(int(net.stride.max()), MIN_STRIDE)


def round_imgsz(imgsz: int) -> int:
    """Round an image size up to a multiple of the stride, as Ultralytics does.

    Raises:
        ValueError: If it is not positive.
    """
    if imgsz < 1:
        raise ValueError(f"imgsz must be a positive number of pixels, got {imgsz}.")
    return int(check_imgsz(imgsz, MIN_STRIDE))


def input_size(imgsz: int | Sequence[int], stride: int) -> list[int]:
    """Return height and width of an input, rounded up to multiples of the stride.

    Args:
        imgsz: Side of a square in pixels, or height and width.
        stride: Stride of the model.

    Raises:
        ValueError: If a side is not positive, or there are others than one or two.
    """
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if not all(side >= 1 for side in sides) or len(sides) not in (1, 2):
        raise ValueError(f"imgsz must be a positive number of pixels, or height and width, got {imgsz}.")
    return check_imgsz(sides, stride, min_dim=2)
