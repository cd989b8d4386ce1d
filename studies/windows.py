"""Routed windows on a network that was trained dense: accuracy, computed share and objects lost, by budget."""

import contextlib
import io
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.windowed import on_windows
from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.files import writable_dir
from mod_vision.routing.window_routers import OracleRouter
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.validate import validate
from mod_vision.yolo.train import fit
from mod_vision.yolo.train.calibration import calibrate_thresholds
from mod_vision.yolo.train.fit_windows import fit_windows

LEAST = 0.5  # worth of a window that the oracle computes: half a cell
IMAGES = 100  # training images that thresholds are set on


def windows(
    weights: str,
    data: str,
    imgsz: int = 640,
    size: Any = (192,),
    budgets: Any = (0.5,),
    router: str = "look",
    entry: int = 0,
    coarse: float = 0.0,
    steps: int = 400,
    tune_rows: bool = True,
    split: str = "val",
    out: str = "runs/windows",
) -> None:
    """Fit a router on windows of 192 px, then score dense, the oracle, and budgets, for each side of windows.

    Args:
        weights: Checkpoint of a dense model.
        data: Data YAML.
        imgsz: Image size in pixels.
        size: Sides of windows in px to score.
        budgets: Mean shares of the pixels to set thresholds for; none scores dense and the oracle alone.
        router: Name of a router of windows.
        entry: Row at which windows are taken.
        coarse: Share of the side of a coarse pass.
        steps: Batches that the router is trained on.
        tune_rows: Whether the copied rows are trained.
        split: Split to score.
        out: Folder for the fitted checkpoint.
    """
    torch.set_num_threads(1)
    path = Path(writable_dir(out)) / f"{router}.pt"
    settings = WindowSettings(size=192, router=router, entry=entry, coarse=coarse)
    yolo = on_windows(load_model(weights), settings)
    fit.fit_windows = partial(fit_windows, steps=steps, tune_rows=tune_rows)
    fit.fit_routing(yolo, data, 0.25, imgsz)
    yolo.save(path)
    score = partial(_score, path, data, split)
    for scale in (1.0, 0.75, 0.5):
        score(f"dense at {scale:g}", round(imgsz * scale / 32) * 32, lambda yolo: set_capacity(yolo, 1.0))
    for side in map(int, as_list(size)):
        score(f"oracle, {side} px", imgsz, partial(_oracle, side=side))
        for budget in map(float, as_list(budgets)):
            change = partial(_budget, side=side, data=data, share=budget, imgsz=imgsz)
            score(f"budget {budget:g}, {side} px", imgsz, change)


def _oracle(yolo: YOLO, side: int) -> None:
    """Place windows by the labels."""
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    entry.window, entry.router, entry.threshold = side, OracleRouter(), LEAST


def _budget(yolo: YOLO, side: int, data: str, share: float, imgsz: int) -> None:
    """Set the threshold that keeps a mean share on training images."""
    head_of(yolo.model).entry.window = side  # type: ignore[union-attr]
    calibrate_thresholds(yolo, data, share, imgsz, IMAGES)


def _score(path: Path, data: str, split: str, name: str, imgsz: int, change: Any) -> None:
    """Score the checkpoint after a change, image by image, and print a line."""
    yolo = load_model(path)
    change(yolo)
    scorer = Scorer(str(yolo.task), None, "pycocotools")
    settings: dict[str, Any] = {"data": data, "imgsz": imgsz, "batch": 1, "device": "cpu", "split": split}
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        found = validate(yolo, scorer.update, **settings, project=folder)
    stats = scorer.result()["box"].stats
    line = f"{name:<22}AP {100 * stats['AP']:.1f}  AP50 {100 * stats['AP50']:.1f}  APs {100 * stats['APs']:.1f}"
    if found.lost and found.lost.windows:
        figures = found.lost.result()
        lost = ", ".join(f"{router} {100 * groups['all']:.1f} %" for router, groups in figures["lost"].items())
        line += f"  share {figures['computed_share']:.3f}, lost: {lost}"
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(windows, str(__doc__)))
