"""Real recordings of still cameras: what a stream computes of them, and whether it says what dense says.

Recordings have no labels here. What dense finds stands for them, and for what moves the blobs that OpenCV's background
subtraction finds (MOG2), which shares no code with ours.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from mod_vision import Stream
from mod_vision.cli.arguments import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.files import fresh_path, writable_dir, write_text
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of

SURE, LOW, SAME = 0.25, 0.15, 0.5  # score of what one finds, and of what the other may say to it; IoU
WARMUP = 25  # frames in which the backgrounds are learnt, which do not count
LEAST = 3e-4  # of the picture, a blob that counts
SHOWN = 0.9  # of its pixels in windows


def footage(
    model: str,
    video: str,
    imgsz: int = 1280,
    frames: int = 200,
    refresh: int = 30,
    window: int = 320,
    budget: float = 0.0,
    threads: int = 2,
    out: str = "runs/footage",
) -> None:
    """Run dense and stream on each frame of recordings, print a table and write it as JSON.

    Args:
        model: Checkpoint; its dense network is used.
        video: Video files, joined by commas.
        imgsz: Longer side of the input in px.
        frames: Most frames of each.
        refresh: Of the stream.
        window: Side of its windows in px.
        budget: Milliseconds that a frame of it may take, 0 for no bound.
        threads: CPU threads.
        out: Folder of the results.
    """
    torch.set_num_threads(threads)
    yolo = load_model(model)
    dense = yolo if head_of(yolo.model) is None else without_windows(yolo)
    rows = {}
    for file in as_list(video):
        camera = on_windows(dense, WindowSettings(size=window, router="zone"))
        stream = Stream(camera, refresh, budget, imgsz=imgsz, conf=LOW)
        rows[Path(file).name] = _figures(_run(file, frames, copy_model(dense), stream, imgsz, threads))
    folder = Path(writable_dir(fresh_path(out, "footage.json")))
    asked = {"model": Path(model).name, "imgsz": imgsz, "refresh": refresh, "window": window, "budget": budget}
    asked["threads"] = threads
    write_text(folder / "footage.json", json.dumps({"asked": asked, "videos": rows}, indent=1) + "\n")
    print(_table(rows))


def _run(file: str, frames: int, dense: Any, stream: Stream, imgsz: int, threads: int) -> list[dict[str, Any]]:
    """Return what is to be told of each frame that counts."""
    source, blobs, rows, i = cv2.VideoCapture(file), cv2.createBackgroundSubtractorMOG2(), [], 0
    if not source.isOpened():
        raise FileNotFoundError(f"{file} is no video that can be read.")
    for i in range(frames):
        there_is_one, frame = source.read()
        if not there_is_one:
            break
        began = time.perf_counter()
        found = dense.predict(frame, imgsz=imgsz, conf=LOW, verbose=False)[0]
        between = time.perf_counter()
        torch.set_num_threads(threads)
        result = stream(frame)
        ended = time.perf_counter()
        torch.set_num_threads(threads)
        shown = _shown(blobs.apply(frame) == 255, result.windows)
        if i >= WARMUP:
            row = {"dense_ms": 1e3 * (between - began), "ms": 1e3 * (ended - between), "share": result.share}
            rows.append(row | {"shown": shown, "found": _found(found, result), "true": _found(result, found)})
    if not rows:
        raise ValueError(f"of {file} at most {WARMUP} frames are read, which do not count; it needs more, or frames=.")
    return rows


def _shown(moving: np.ndarray, windows: np.ndarray) -> list[bool]:
    """Return of each blob of a mask (H, W) whether windows show it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.medianBlur(moving.astype(np.uint8), 5))
    seen = np.zeros(moving.shape, bool)
    for x1, y1, x2, y2 in windows.round().astype(int).clip(0):
        seen[y1:y2, x1:x2] = True
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= LEAST * moving.size]
    return [bool(seen[labels == i].mean() >= SHOWN) for i in large]


def _found(wanted: Any, said: Any) -> list[bool]:
    """Return of each sure detection of one whether the other has it, by class and place."""
    sure = wanted.boxes[wanted.boxes.conf >= SURE]
    if not len(said.boxes):
        return [False] * len(sure)
    same = (box_iou(sure.xyxy, said.boxes.xyxy) >= SAME) & (sure.cls[:, None] == said.boxes.cls)
    return [bool(found) for found in same.any(1)]


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a recording."""
    ms, dense = (np.array([row[key] for row in rows]) for key in ("ms", "dense_ms"))
    shares = {key: [yes for row in rows for yes in row[key]] for key in ("found", "true", "shown")}
    figures: dict[str, Any] = {"frames": len(rows), "dense_ms": float(dense.mean()), "ms": float(ms.mean())}
    figures |= {"p50": float(np.median(ms)), "p95": float(np.percentile(ms, 95)), "max": float(ms.max())}
    figures |= {key: 100 * float(np.mean(values)) if values else None for key, values in shares.items()}
    figures |= {"of": {key: len(values) for key, values in shares.items()}}
    idle = float(np.mean([row["share"] == 0 for row in rows]))
    return figures | {"share": float(np.mean([row["share"] for row in rows])), "idle": idle}


def _table(rows: dict[str, Any]) -> str:
    """Return the table."""
    head = ("", "frames", "dense ms", "stream ms: mean, p50, p95, max", "times as fast", "pixels, idle frames")
    lines = [f"| {' | '.join((*head, 'found', 'true', 'shown'))} |", f"{'| --- ' * 9}|"]
    for name, row in rows.items():
        found, true, shown = ("" if row[key] is None else f"{row[key]:.1f} %" for key in ("found", "true", "shown"))
        times = ", ".join(f"{row[key]:.0f}" for key in ("p50", "p95", "max"))
        speed = row["dense_ms"] / row["ms"]
        lines.append(
            f"| {name} | {row['frames']} | {row['dense_ms']:.1f} | {row['ms']:.1f}, {times} | {speed:.2f} | "
            f"{row['share']:.2f}, {row['idle']:.2f} | {found} | {true} | {shown} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_tool(footage, str(__doc__)))
