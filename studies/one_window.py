"""One window of any shape, which fits all that the router sees: for few, large objects. AP, objects lost, milliseconds.

Ordinary windows have one side, and cut what is larger. Here the cells that the router gives a probability, and those
around them, are bounded by one rectangle, on which the network runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ultralytics import YOLO

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.rows import score
from mod_vision.conversion.timing import time_predictions
from mod_vision.files import writable_dir, write_text
from mod_vision.routing import window_layer
from mod_vision.routing.placing import boxed
from mod_vision.routing.window_routers import OracleRouter
from mod_vision.routing.windows import CELL, WindowPlan
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import evenly_spaced, read_images, some_images
from mod_vision.yolo.run.letterbox import forward_letterboxed
from studies.opponents.asked import check_same, digest
from studies.seeds import trained

PHOTOS = 16  # of the split, that are timed


def one_window(
    model: str,
    data: str,
    imgsz: int = 640,
    lower: Any = (),
    probabilities: Any = (0.5, 0.2, 0.05, 0.02),
    halo: int = 2,
    steps: int = 1000,
    split: str = "val",
    threads: int = 2,
    out: str = "runs/one_window",
) -> None:
    """Train a router, and score and time dense, by the labels, and by the router at each probability.

    Args:
        model: Dense checkpoint.
        data: Data YAML.
        imgsz: Image size in px.
        lower: Smaller image sizes of the dense model.
        probabilities: Least probability of a cell that the window has to hold.
        halo: Cells around such a cell that it holds besides.
        steps: Batches that the router is trained on.
        split: Split to report on.
        threads: CPU threads.
        out: Folder of the results; a training that was stopped goes on.
    """
    folder = Path(writable_dir(out))
    asked = {"model": digest(model), "data": Path(data).name, "imgsz": imgsz, "halo": halo, "steps": steps}
    check_same(folder / "asked.json", asked | {"split": split})
    torch.set_num_threads(threads)
    dense = load_model(model)
    routed, _ = trained(dense, data, imgsz, 0, "look", steps, folder / "parts")
    head_of(routed.model).objectness = 0.0  # type: ignore[union-attr]
    models = {"dense": (dense, imgsz)} | {f"dense at {size} px": (dense, int(size)) for size in as_list(lower)}
    models["by the labels"] = (_with(routed, 0.5, halo, oracle=True), imgsz)
    models |= {f"router at {p}": (_with(routed, float(p), halo), imgsz) for p in as_list(probabilities)}
    images = some_images(data, sys.maxsize, split)
    photos = list(read_images(evenly_spaced(images, PHOTOS)))
    torch.set_num_threads(threads)
    window_layer.plan_windows = _one
    times = time_predictions({name: own for name, own in models.items() if name != "by the labels"}, photos)
    print("| | AP | AP of boxes | lost | share | ms, p95 |\n| --- | --- | --- | --- | --- | --- |")
    for name, (yolo, size) in models.items():
        torch.set_num_threads(threads)  # a validation sets its own
        found, time = score(yolo, data, size, split, "cpu"), times.get(name)
        figures: dict[str, Any] = {"name": name, "imgsz": size, **asdict(found)}
        share = _share(yolo, images, size) if name.startswith("router") else None
        figures |= {"share": share, "ms": time and [time.median, time.p95]}
        write_text(folder / f"{name.replace(' ', '-')}.json", json.dumps(figures, indent=1))
        cells = [name, f"{found.ap:.1f}", "" if found.box_ap is None else f"{found.box_ap:.1f}"]
        cells += ["" if found.lost is None else f"{found.lost:.1f} %", "" if share is None else f"{share:.2f}"]
        cells += [f"{time.median:.1f}, {time.p95:.0f}" if time else ""]
        print(f"| {' | '.join(cells)} |", flush=True)


def _with(routed: YOLO, probability: float, halo: int, oracle: bool = False) -> YOLO:
    """Return a copy with one window at a probability; by the labels, if these are asked."""
    yolo = copy_model(routed)
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    if oracle:
        entry.router = OracleRouter()
    entry.set_threshold(probability)
    entry.window = halo * entry.cell  # where the plan finds it
    return yolo


def _share(yolo: YOLO, images: Sequence[Path], imgsz: int) -> float:
    """Return the mean share of the pixels of images that their window computes."""
    found = []
    for photo in read_images(images):
        forward_letterboxed(yolo.model, photo, imgsz)
        found.append(head_of(yolo.model).entry.plan.share)  # type: ignore[union-attr]
    return sum(found) / len(found)


def _one(
    logits: torch.Tensor,
    size: tuple[int, int],
    window: tuple[int, int],
    k: int,
    cell: int = CELL,
    least: float | None = None,
    inside: torch.Tensor | None = None,
    counts: Sequence[int] | None = None,
    cover: bool = False,
) -> WindowPlan:
    """Place the window of an image; arguments as `plan_windows` has them, `window` being the halo."""
    assert least is not None
    here = (logits.sigmoid() >= least) if inside is None else (logits.sigmoid() >= least) & inside
    wide = F.max_pool2d(here.view(1, 1, *size).float(), 2 * window[0] + 1, 1, window[0]) > 0
    count = int(bool(here.any()))
    plan = WindowPlan(logits, torch.zeros(1, count, 2, dtype=torch.long), size, size, cell, None, wide.view(1, -1))
    return boxed(plan)._replace(inside=inside)


if __name__ == "__main__":
    sys.exit(run_tool(one_window, str(__doc__)))
