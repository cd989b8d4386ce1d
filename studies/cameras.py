"""Still cameras: `refresh` against each frame anew, every third frame, crops of what moved, and a zone by hand.

AP over all frames, how many frames later than dense a new object is found, and milliseconds from the decoded frame to
its detections, each way in turn on each frame. Recordings are made, see `recordings`.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou
from ultralytics import YOLO

from mod_vision import Stream, set_refresh, set_zone
from mod_vision.cli.main import run_tool
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.files import fresh_path, writable_dir, write_text
from mod_vision.routing.zone import GRID
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.background import Background
from studies.recordings import Recording, recordings

CONF, SURE, SAME = 0.05, 0.25, 0.5  # lowest score for AP, and for an object to count as found; IoU
EVERY = 3  # frames, of the way that skips
CROP = 320  # px, to which crops of what moved are scaled at most
WARMUP = 5  # frames that are not timed
FIFTH = [[0.2, 0.3], [0.7, 0.3], [0.7, 0.7], [0.2, 0.7]]  # shares of the picture

Find = Callable[[np.ndarray], np.ndarray]  # of a frame: corners, score and class, (n, 6)


def cameras(
    model: str,
    data: str,
    imgsz: int = 1536,
    camera: str = "^[^_]+",
    split: str = "val",
    frames: int = 90,
    movers: Any = 8,
    refresh: int = 30,
    window: int = 320,
    waves: float = 0.0,
    budget: float = 0.0,
    threads: int = 2,
    out: str = "runs/cameras",
) -> None:
    """Compare the ways, print a table and write it as JSON.

    Args:
        model: Checkpoint, dense or on windows; its dense network is used, and its router too if it has one.
        data: Data YAML.
        imgsz: Longer side of the input in px.
        camera: Pattern that finds the camera in the name of an image.
        split: Split of the stills.
        frames: Frames of each recording.
        movers: Objects that cross each; 0 is a scene in which nothing moves.
        refresh: Of the streams.
        window: Side of their windows in px.
        waves: Share of the pictures' height, from below, in which the crests of waves come and go.
        budget: Milliseconds of a stream with a deadline; 0 leaves it out.
        threads: CPU threads.
        out: Folder of the results.
    """
    if frames <= WARMUP:
        raise ValueError(f"frames={frames}: the first {WARMUP} are not timed, so a recording needs more.")
    torch.set_num_threads(threads)
    yolo = load_model(model)
    routed = None if head_of(yolo.model) is None else yolo
    dense = yolo if routed is None else without_windows(yolo)
    made = recordings(data, split, camera, frames, int(movers), waves)
    found: dict[str, Any] = {}
    for number, recording in enumerate(made):
        ways = _ways(dense, routed, recording, imgsz, refresh, window, budget)
        _run(recording, number, ways, threads, found)
        print(f"{recording.name}: {len(recording.movers)} objects cross, {len(recording.standing)} stand", flush=True)
    rows = {name: _figures(own, found["dense"], made) for name, own in found.items()}
    folder = Path(writable_dir(fresh_path(out, "cameras.json")))
    asked = {
        "model": Path(model).name,
        "data": Path(data).name,
        "imgsz": imgsz,
        "frames": frames,
        "movers": movers,
        "waves": waves,
    }
    asked |= {
        "refresh": refresh,
        "budget": budget,
        "window": window,
        "threads": threads,
        "recordings": [r.name for r in made],
    }
    write_text(folder / "cameras.json", json.dumps({"asked": asked, "ways": rows}, indent=1) + "\n")
    write_text(folder / "table.md", _table(rows))
    print(_table(rows))


def _ways(
    dense: YOLO, routed: YOLO | None, recording: Recording, imgsz: int, refresh: int, window: int, budget: float
) -> dict[str, Find]:
    """Return the ways, anew for a recording."""
    words = {"imgsz": imgsz, "conf": CONF}
    ways: dict[str, Find] = {"dense": _each(copy_model(dense), words)}
    ways[f"every {EVERY}rd frame"] = _skipping(ways["dense"])
    ways["crops of what moved"] = _crops(copy_model(dense))
    zone = on_windows(dense, WindowSettings(size=window, router="zone"))
    set_zone(zone, _zone(recording))
    ways["zone by hand"] = _each(zone, words)
    fifth = on_windows(dense, WindowSettings(size=window, router="zone"))
    set_zone(fifth, FIFTH)
    ways["a fifth of the picture"] = _each(fifth, words)
    camera = on_windows(dense, WindowSettings(size=window, router="zone"))
    ways[f"stream, refresh {refresh}"] = _stream(Stream(camera, refresh, **words))
    if budget:
        ways[f"stream, {budget:g} ms"] = _stream(Stream(copy_model(camera), refresh, budget, **words))
    both = on_windows(dense, WindowSettings(size=window, router="zone"))
    set_zone(both, _zone(recording))
    ways["stream in the zone"] = _stream(Stream(both, refresh, **words))
    if routed is not None:
        each = copy_model(routed)
        set_refresh(each, 0)
        ways["routed"] = _each(each, words)
        ways["routed, as a stream"] = _stream(Stream(copy_model(routed), refresh, **words))
    return ways


def _run(recording: Recording, number: int, ways: dict[str, Find], threads: int, found: dict[str, Any]) -> None:
    """Run all ways on each frame, and add what they found and the time it took."""
    for i, frame in enumerate(recording):
        for name, find in ways.items():
            began = time.perf_counter()
            own = find(frame)
            took = 1e3 * (time.perf_counter() - began)
            torch.set_num_threads(threads)
            kept = found.setdefault(name, {"ms": [], "found": {}})
            kept["found"][number, i] = own
            if i >= WARMUP:
                kept["ms"].append(took)


def _each(yolo: YOLO, words: dict[str, Any]) -> Find:
    """Return a way that predicts each frame."""
    return lambda frame: yolo.predict(frame, verbose=False, **words)[0].boxes.data.numpy()


def _stream(stream: Stream) -> Find:
    """Return a way that keeps what stands."""
    return lambda frame: stream(frame).boxes.data.numpy()


def _skipping(find: Find) -> Find:
    """Return a way that predicts some frames, and keeps what was found for the others."""
    kept: list[np.ndarray] = []

    def skip(frame: np.ndarray) -> np.ndarray:
        kept.append(kept[-1] if len(kept) % EVERY else find(frame))
        return kept[-1]

    return skip


def _crops(yolo: YOLO) -> Find:
    """Return a way that runs the network on crops of what moved, as video recorders do; what stands is not found."""
    background = Background()

    def find(frame: np.ndarray) -> np.ndarray:
        changed = background.changed(frame)
        if changed is None or not changed.any():
            return np.zeros((0, 6))
        joined = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8))
        count, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
        scale, found = np.array(frame.shape[1::-1]) / GRID, []
        for x, y, w, h, _ in boxes[1:count]:
            left, top = (np.array((x, y)) * scale).astype(int)
            right, bottom = np.ceil(np.array((x + w, y + h)) * scale).astype(int)
            side = min(CROP, -(-max(right - left, bottom - top) // 32) * 32)
            crop = np.ascontiguousarray(frame[top:bottom, left:right])
            own = yolo.predict(crop, imgsz=int(side), conf=CONF, verbose=False)[0].boxes.data.numpy()
            found.append(own + np.array((left, top, left, top, 0, 0)))
        return np.concatenate(found)

    return find


def _zone(recording: Recording) -> list[list[list[float]]]:
    """Return the zone that someone would draw who knows where objects come by: the band around all of them."""
    height, width = recording.still.shape[:2]
    tops = [box[1] for mover in recording.movers if (box := mover.box(mover.begins, width))] or [0.0]
    ends = [box[3] for mover in recording.movers if (box := mover.box(mover.begins, width))] or [height]
    low, high = max(0.0, min(tops) / height - 0.02), min(1.0, max(ends) / height + 0.02)
    return [[[0.0, low], [1.0, low], [1.0, high], [0.0, high]]]


def _figures(own: dict[str, Any], dense: dict[str, Any], made: list[Recording]) -> dict[str, Any]:
    """Return the figures of a way."""
    ms = np.array(own["ms"])
    delays, missed = _delays(own["found"], dense["found"], made)
    figures = {"AP": _ap(own["found"], made), "AP_moving": _ap(own["found"], made, moving=True)}
    figures |= {"ms": float(np.median(ms)), "mean_ms": float(ms.mean()), "p95": float(np.percentile(ms, 95))}
    figures |= {"max": float(ms.max()), "delay": float(np.mean(delays)) if delays else 0.0, "missed": missed}
    return figures | {"delay_p95": float(np.percentile(delays, 95)) if delays else 0.0}


def _delays(found: dict[Any, np.ndarray], dense: dict[Any, np.ndarray], made: list[Recording]) -> tuple[list[int], int]:
    """Return how many frames later than dense each new object is found, and how many of dense's are never found."""
    delays, missed = [], 0
    for number, recording in enumerate(made):
        for which in range(len(recording.movers)):
            first = _first(dense, recording, number, which)
            mine = _first(found, recording, number, which)
            if first is not None and mine is not None:
                delays.append(mine - first)
            missed += first is not None and mine is None
    return delays, missed


def _first(found: dict[Any, np.ndarray], recording: Recording, number: int, which: int) -> int | None:
    """Return the first frame in which an object is found."""
    for i in range(recording.frames):
        for label, cls, box in recording.labels(i):
            own = found[number, i]
            own = own[(own[:, 4] >= SURE) & (own[:, 5] == cls)]
            if label == which and len(own):
                ious = box_iou(torch.tensor([box]).double(), torch.from_numpy(own[:, :4]).double())
                if float(ious.max()) >= SAME:
                    return i
    return None


def _ap(found: dict[Any, np.ndarray], made: list[Recording], moving: bool = False) -> float:
    """Return the AP over all frames, in percent; what stands is ignored for `moving`."""
    images: list[Any] = []
    truth: list[Any] = []
    said: list[Any] = []
    for number, recording in enumerate(made):
        for i in range(recording.frames):
            images.append({"id": len(images) + 1})
            for label, cls, (x1, y1, x2, y2) in recording.labels(i):
                box, size = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
                crowd = int(moving and label < 0)
                truth.append({"id": len(truth) + 1, "image_id": len(images), "category_id": cls, "bbox": box})
                truth[-1] |= {"area": size, "iscrowd": crowd}
            for x1, y1, x2, y2, score, cls in found[number, i].tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                said.append({"image_id": len(images), "category_id": int(cls), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [{"id": cls} for cls in sorted({row["category_id"] for row in truth})]
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        if not said:
            return 0.0
        judge = COCOeval(coco, coco.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return max(0.0, 100 * float(judge.stats[0]))  # -1 without an object


def _table(rows: dict[str, Any]) -> str:
    """Return the table."""
    lines = ["| | AP | of what moves | delay, p95 (frames) | never found | ms, mean | p95, max | times as fast |"]
    lines.append(f"{'| --- ' * 8}|")
    base = rows["dense"]["mean_ms"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['AP']:.1f} | {row['AP_moving']:.1f} | {row['delay']:.1f}, {row['delay_p95']:.0f} | "
            f"{row['missed']} | {row['ms']:.1f}, {row['mean_ms']:.1f} | {row['p95']:.0f}, {row['max']:.0f} | "
            f"{base / row['mean_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_tool(cameras, str(__doc__)))
