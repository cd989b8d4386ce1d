"""The same network and minutes, trained on whole images, on smaller ones, and on windows: AP dense and routed.

A training has one core; two of them run at a time, so `minutes` of two cores are twice as many of one. Each starts from
nothing. The routed model of a network that was trained dense has a router that is fitted afterwards; one that was
trained on windows has its own. Thresholds are set on training images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.job import with_router
from mod_vision.conversion.rows import score
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.train.calibration import calibrate_thresholds
from mod_vision.yolo.train.fit import labelled_batches
from mod_vision.yolo.train.fit_windows import fit_windows

AT_ONCE = 2  # trainings, one core each
SMALLER = 640  # px
ENOUGH = 1000  # epochs: the time ends a training
CALIBRATED = 100  # training images that thresholds are set on
COMMON = {"device": "cpu", "workers": 0, "val": False, "plots": False, "exist_ok": True, "pretrained": False}


def budgets(
    data: str,
    imgsz: int = 640,
    minutes: Any = (10, 30, 90),
    batch: int = 8,
    share: float = 0.35,
    steps: int = 400,
    split: str = "val",
    out: str = "runs/budgets",
) -> None:
    """Train, score, and write a JSON for each training; what is there is kept.

    Args:
        data: Data YAML.
        imgsz: Image size in px.
        minutes: Minutes of two cores for each training.
        batch: Batch size.
        share: Mean share of the pixels that the routed models compute.
        steps: Batches that the routers of dense trainings are fitted on.
        split: Split to report on.
        out: Folder of the results.
    """
    folder = Path(writable_dir(out))
    jobs = [(kind, float(m)) for m in as_list(minutes) for kind in ("whole", "smaller", "windows")]
    to_do = [job for job in jobs if not _result(folder, *job).is_file()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(partial(_train, data, imgsz, batch, folder), *zip(*to_do, strict=True)) if to_do else [])
    for kind, budget in to_do:
        size = SMALLER if kind == "smaller" else imgsz
        found = {"kind": kind, "minutes": budget, "imgsz": size}
        found |= _scored(_weights(folder, kind, budget), data, size, imgsz, share, steps, split)
        write_text(_result(folder, kind, budget), json.dumps(found, indent=1))
    print("| minutes | trained on | AP dense | AP routed | objects lost |\n| --- | --- | --- | --- | --- |")
    for kind, budget in jobs:
        found = json.loads(_result(folder, kind, budget).read_text())
        ap, routed = found["dense"]["ap"], found["routed"]
        print(f"| {budget:g} | {kind} | {ap:.1f} | {routed['ap']:.1f} | {routed['lost']:.1f} % |")


def _result(folder: Path, kind: str, minutes: float) -> Path:
    """Return the JSON of a training."""
    return folder / f"{kind}-{minutes:g}.json"


def _weights(folder: Path, kind: str, minutes: float) -> Path:
    """Return the weights of a training."""
    return folder / f"{kind}-{minutes:g}" / "weights" / "last.pt"


def _train(data: str, imgsz: int, batch: int, folder: Path, kind: str, minutes: float) -> None:
    """Train by plain `yolo train` on one core for a time.

    Raises:
        RuntimeError: If it fails.
    """
    if _weights(folder, kind, minutes).is_file():
        return
    words = COMMON | {"data": data, "batch": batch, "nbs": batch, "epochs": ENOUGH, "time": minutes * AT_ONCE / 60}
    words |= {"model": "yolo26n-mod.yaml" if kind == "windows" else "yolo26n.yaml"}
    words |= {"imgsz": SMALLER if kind == "smaller" else imgsz, "optimizer": "AdamW", "lr0": 0.002, "lrf": 0.02}
    words |= {"project": str(folder.resolve()), "name": f"{kind}-{minutes:g}"}
    command = [sys.executable, "-m", "mod_vision.yolo.train.cpu", "train", *(f"{k}={v}" for k, v in words.items())]
    log = folder / f"{kind}-{minutes:g}.log"
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    if code or not _weights(folder, kind, minutes).is_file():
        raise RuntimeError(f"a training failed; what it said is in {log}")


def _scored(weights: Path, data: str, size: int, imgsz: int, share: float, steps: int, split: str) -> dict[str, Any]:
    """Return the figures of a network, dense at the size that it was trained at and routed at the full one."""
    torch.set_num_threads(AT_ONCE)
    yolo = load_model(weights)
    dense = copy_model(yolo)
    if head_of(dense.model) is not None:
        set_capacity(dense, 1.0)
    found = {"dense": asdict(score(dense, data, size, split, "cpu"))}
    if size != imgsz:
        found["dense_full"] = asdict(score(dense, data, imgsz, split, "cpu"))
    routed = yolo if head_of(yolo.model) is not None else _fitted(yolo, data, imgsz, steps)
    calibrate_thresholds(routed, data, share, imgsz, CALIBRATED)
    return found | {"routed": asdict(score(routed, data, imgsz, split, "cpu"))}


def _fitted(yolo: YOLO, data: str, imgsz: int, steps: int) -> YOLO:
    """Return a dense model on windows with a router that is trained for it."""
    routed = with_router(yolo, "look")
    fit_windows(routed.model, labelled_batches(routed, data, imgsz), steps)
    return routed


if __name__ == "__main__":
    sys.exit(run_tool(budgets, str(__doc__)))
