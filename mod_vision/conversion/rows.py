"""The rows of the table: how well, how fast and in how much memory a model runs, dense, smaller or on windows."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ultralytics import YOLO

from mod_vision.conversion.seen import count_lost
from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.routing.lost_objects import LostObjects
from mod_vision.yolo.data.description import naming_split
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.trust import restricted
from mod_vision.yolo.run.log import warnings_only
from mod_vision.yolo.run.validate import validate
from mod_vision.yolo.run.zone_validator import validator_in

HEAD = ("model", "imgsz", "AP", "AP50", "lost", "small", "windows", "ms", "p95", "MB")


@dataclass
class Accuracy:
    """Accuracy of a model on a split, in percent.

    Attributes:
        ap: COCO's AP, of masks if the model segments; of keypoints and of rotated boxes as Ultralytics has it.
        ap50: AP at an IoU of 0.5.
        lost: Objects that no window shows; None for a dense model.
        lost_small: The same of small ones, below 32 x 32 px; None if there is none.
        windows: Median of the windows of an image; None for a dense model.
        box_ap: AP of boxes, if `ap` is of masks.
    """

    ap: float
    ap50: float
    lost: float | None = None
    lost_small: float | None = None
    windows: float | None = None
    box_ap: float | None = None


@dataclass
class Row:
    """A row of the table.

    Attributes:
        name: What runs.
        imgsz: Longer side of the image in px.
        accuracy: On the split that is reported.
        ms: Median milliseconds of an image.
        p95: 95th percentile of them.
        megabytes: Peak memory of a forward.
    """

    name: str
    imgsz: int
    accuracy: Accuracy
    ms: float = 0.0
    p95: float = 0.0
    megabytes: float = 0.0


def score(
    yolo: YOLO, data: str, imgsz: int, split: str, device: str, zone_filter: ZoneFilter | None = None
) -> Accuracy:
    """Score a model, image by image; it stays as it is.

    Args:
        yolo: The model.
        data: Data YAML.
        imgsz: Longer side of the image in px.
        split: Split of the data set.
        device: Where it runs.
        zone_filter: The zone that alone counts, for objects and detections of any model; None is the whole picture.
    """
    where = {"data": data, "imgsz": imgsz, "split": split, "device": device, "batch": 1}
    by = _by_coco if yolo.task in ("detect", "segment") else _by_ultralytics
    return by(yolo, where, zone_filter)


def _by_coco(yolo: YOLO, where: dict[str, Any], zone_filter: ZoneFilter | None) -> Accuracy:
    """Return the accuracy of a model for detection or segmentation."""
    scorer = Scorer(str(yolo.task), None, "pycocotools")
    with tempfile.TemporaryDirectory() as folder, warnings_only(), contextlib.redirect_stdout(io.StringIO()):
        found = validate(copy_model(yolo), scorer.update, None, zone_filter, project=folder, **where)
        scores = scorer.result()
    stats = scores["mask" if "mask" in scores else "box"].stats
    boxes = 100 * scores["box"].stats["AP"] if "mask" in scores else None
    accuracy = Accuracy(100 * stats["AP"], 100 * stats["AP50"], box_ap=boxes)
    return _with_lost(accuracy, found.lost)


def _by_ultralytics(yolo: YOLO, where: dict[str, Any], zone_filter: ZoneFilter | None) -> Accuracy:
    """Return the accuracy of a model for keypoints or rotated boxes."""
    validator = None if zone_filter is None else validator_in(yolo._smart_load("validator"), zone_filter)
    quiet: dict[str, Any] = {"plots": False, "workers": 0, "verbose": False, "val": False}  # `val` would write JSON
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for context in (warnings_only(), contextlib.redirect_stdout(io.StringIO()), restricted()):
            stack.enter_context(context)
        stack.enter_context(naming_split(where["data"], where["split"]))
        metrics: Any = copy_model(yolo).val(validator, **where, **quiet, project=folder)
    lost = count_lost(yolo, where["data"], where["imgsz"], where["split"], zone_filter)
    found = metrics.pose if yolo.task == "pose" else metrics.box
    return _with_lost(Accuracy(100 * float(found.map), 100 * float(found.map50)), lost)


def _with_lost(accuracy: Accuracy, counted: LostObjects | None) -> Accuracy:
    """Return an accuracy with the objects that windows lose, if it is of a model on windows."""
    if counted and counted.windows:
        figures = counted.result()
        lost = figures["lost"].get("router", {})
        accuracy.lost, accuracy.windows = 100 * lost.get("all", 0.0), figures["windows_median"]
        accuracy.lost_small = 100 * lost["small"] if "small" in lost else None
    return accuracy


def table(rows: Sequence[Row], conditions: str = "batch 1") -> str:
    """Return the rows as text; `conditions` are those of the times."""
    lines = [f"{HEAD[0]:<24}" + "".join(f"{name:>9}" for name in HEAD[1:])]
    for row in rows:
        a = row.accuracy
        figures = [str(row.imgsz), _one(a.ap), _one(a.ap50), _percent(a.lost), _percent(a.lost_small)]
        figures += [_plain(a.windows), _one(row.ms), _one(row.p95), f"{row.megabytes:.0f}"]
        lines.append(f"{row.name:<24}" + "".join(f"{figure:>9}" for figure in figures))
    lines.append(
        "lost, small: objects of which no window shows half, all and those below 32 x 32 px; windows: median of an "
        "image;"
    )
    lines.append(
        "look 192 at 36 %: router, side of a window in px, share of the pixels in windows; *: what was asked for"
    )
    lines.append(f"ms: from a decoded image to its detections, median and 95th percentile, in turn, {conditions}")
    return "\n".join(lines)


def _one(value: float) -> str:
    """Return a number with one digit behind the point."""
    return f"{value:.1f}"


def _percent(value: float | None) -> str:
    """Return a share in percent, nothing for None."""
    return "" if value is None else f"{value:.1f}%"


def _plain(value: float | None) -> str:
    """Return a number as short as it goes, nothing for None."""
    return "" if value is None else f"{value:g}"
