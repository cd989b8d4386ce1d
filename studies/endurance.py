"""Several still cameras in one process for hours: milliseconds of a frame, and whether memory grows.

Frames are those of made recordings, see `recordings`, which come again and again. Each camera has its own `Stream`.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from mod_vision import Stream
from mod_vision.cli.main import run_tool
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from studies.recordings import recordings

MADE = 60  # frames of a recording, after which it begins again
TELL = 1000  # frames after which memory is looked at


def endurance(
    model: str,
    data: str,
    imgsz: int = 640,
    cameras: int = 8,
    frames: int = 72000,
    movers: int = 2,
    camera: str = "^[^_]+",
    split: str = "val",
    window: int = 192,
    threads: int = 2,
    out: str = "runs/endurance",
) -> None:
    """Run frames of cameras in turn, print what they took, and write it as JSON.

    Args:
        model: Checkpoint, dense or on windows, of which the dense network is taken.
        data: Data YAML.
        imgsz: Longer side of frames and input in px.
        cameras: Streams; the recordings are shared out among them.
        frames: Frames of all cameras together; 72,000 are two hours at ten a second.
        movers: Objects that cross each recording.
        camera: Pattern that finds the camera in the name of an image.
        split: Split of the stills.
        window: Side of windows in px.
        threads: CPU threads.
        out: Folder of the results.
    """
    torch.set_num_threads(threads)
    yolo = load_model(model)
    dense = yolo if head_of(yolo.model) is None else without_windows(yolo)
    base = on_windows(dense, WindowSettings(size=window, router="zone"))
    if not (made := recordings(data, split, camera, MADE, movers)):
        raise ValueError(f"{data}: no camera by {camera!r} has several stills in {split!r}; give another camera=.")
    shown = [[_scaled(frame, imgsz) for frame in made[i % len(made)]] for i in range(cameras)]
    streams = [Stream(copy_model(base), imgsz=imgsz) for _ in range(cameras)]
    feeds, process = [cycle(own) for own in shown], psutil.Process()
    times, memory = np.zeros(frames), []
    for i in range(frames):
        began = time.perf_counter()
        streams[i % cameras](next(feeds[i % cameras]))
        times[i] = 1e3 * (time.perf_counter() - began)
        torch.set_num_threads(threads)  # a prediction sets its own
        if (i + 1) % TELL == 0:
            memory.append(process.memory_info().rss / 2**20)
            print(f"{i + 1} frames, {memory[-1]:.0f} MiB", flush=True)
    figures = _figures(times, memory)
    asked = {"model": Path(model).name, "data": Path(data).name, "imgsz": imgsz, "cameras": cameras, "frames": frames}
    asked |= {"movers": movers, "window": window, "threads": threads}
    write_text(Path(writable_dir(out)) / "endurance.json", json.dumps({"asked": asked} | figures) + "\n")
    print({key: value for key, value in figures.items() if key != "MiB"})


def _scaled(frame: np.ndarray, imgsz: int) -> np.ndarray:
    """Return a frame whose longer side has `imgsz` px."""
    scale = imgsz / max(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _figures(times: np.ndarray, memory: list[float]) -> dict[str, Any]:
    """Return milliseconds, and what memory gains in 10,000 frames after the first fifth, in MiB."""
    settled = memory[len(memory) // 5 :]
    growth = np.polyfit(np.arange(len(settled)), settled, 1)[0] * 10000 / TELL if len(settled) > 1 else float("nan")
    p50, p95 = np.percentile(times, (50, 95))
    figures = {"mean": times.mean(), "p50": p50, "p95": p95, "max": times[1:].max(), "growth": growth}
    return {name: round(float(value), 2) for name, value in figures.items()} | {"MiB": [round(m, 1) for m in memory]}


if __name__ == "__main__":
    sys.exit(run_tool(endurance, str(__doc__)))
