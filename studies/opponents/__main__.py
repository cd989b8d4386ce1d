"""Routed windows against dense models, SAHI, ESOD's rule and other routers: AP, objects lost, milliseconds.

Accuracy is on a labelled split, time on images of it, each way in turn. Thresholds are set on training images.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.data.utils import img2label_paths

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.job import with_router
from mod_vision.conversion.windowed import on_windows
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_images, some_images
from mod_vision.yolo.run.letterbox import forward_letterboxed
from mod_vision.yolo.run.window_objects import label_boxes, position_prior
from mod_vision.yolo.train.fit import labelled_batches
from mod_vision.yolo.train.fit_windows import fit_windows
from studies.opponents.asked import check_same, digest, once
from studies.opponents.placing import Esod, Oracle, Prior, Random, Zone, placing_by, zones_of
from studies.opponents.report import file_name, report
from studies.opponents.scoring import images_of, scenes_of, score
from studies.opponents.shares import at_share, plans_of
from studies.opponents.timing import time_ways
from studies.opponents.ways import Way, model_way, sahi_way

CALIBRATED = 100  # training images that thresholds are set on
ZONE_CELLS = 32  # cells along each side of an image that a zone is drawn on
PATCHES = 8  # along the longer side of an image
PASS = 0.25  # share of the side of the coarse pass of `density`


def opponents(
    routed: str,
    dense: str,
    data: str,
    imgsz: int = 640,
    split: str = "val",
    lower: Any = (),
    smaller: str = "",
    esod: int = 0,
    shares: Any = (0.15, 0.25, 0.35, 0.5),
    slices: Any = (),
    scene: str = "",
    camera: str = "",
    threads: int = 2,
    out: str = "runs/opponents",
) -> None:
    """Measure all ways, and write a JSON of each, times.json, table.md and pareto.png; what is there is kept.

    Args:
        routed: Checkpoint on windows, of the dense weights, with a router that is trained.
        dense: Checkpoint of the dense model.
        data: Data YAML.
        imgsz: Image size in px.
        split: Split to report on.
        lower: Image sizes of dense models below `imgsz`; `768:weights.pt` has weights trained for it.
        smaller: Checkpoint of the next smaller dense model.
        esod: Batches that the object seeker of ESOD's rule is trained on; 0 leaves it out.
        shares: Mean shares of the pixels to set thresholds for, besides the model's own.
        slices: Sides of SAHI's slices in px of the model's input.
        scene: Pattern that finds the scene in the name of an image; without, each image is its own.
        camera: Pattern that finds the camera, for zones; without, there are none.
        threads: Threads.
        out: Folder of the results.
    """
    folder = Path(writable_dir(out))
    check_same(folder / "asked.json", _asked(locals()))
    base = load_model(dense)
    found = images_of(base, data, split)
    torch.set_num_threads(threads)  # a validation sets its own
    scenes = scenes_of(found.files, scene or "^.*$")
    ways = _dense(base, imgsz, lower, smaller)
    ways += _routed(load_model(routed), data, imgsz, [float(share) for share in as_list(shares)])
    ways += _placed(load_model(routed), base, data, imgsz, camera)
    if esod:
        ways += _esod(base, data, imgsz, [float(share) for share in as_list(shares)], esod, folder / "esod.pt")
    ways += [sahi_way(dense, int(side), imgsz) for side in as_list(slices)]
    for way in ways:
        once(folder / file_name(way.name), partial(score, way, found, scenes, camera or "^"))
    once(folder / "times.json", lambda: time_ways([way for way in ways if way.timed], found, threads, camera or "^"))
    write_text(folder / "table.md", report(folder, [way.name for way in ways]))
    print((folder / "table.md").read_text())


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """Return what is asked for, weights by their digest."""
    kept = {key: value for key, value in given.items() if key not in ("out", "folder")}
    for key in ("routed", "dense", "smaller"):
        kept[key] = digest(kept[key])
    sizes = (str(text).partition(":") for text in as_list(kept["lower"]))
    return kept | {"data": Path(kept["data"]).name, "lower": [[size, digest(weights)] for size, _, weights in sizes]}


def _dense(base: YOLO, imgsz: int, lower: Any, smaller: str) -> list[Way]:
    """Return the dense ways."""
    ways = [model_way("dense", base, imgsz)]
    for text in map(str, as_list(lower)):
        size, _, weights = text.partition(":")
        name = f"dense at {size} px" + (", trained for it" if weights else "")
        ways.append(model_way(name, load_model(weights) if weights else base, int(size)))
    if smaller:
        ways.append(model_way("the next smaller model", load_model(smaller), imgsz))
    return ways


def _routed(yolo: YOLO, data: str, imgsz: int, shares: list[float]) -> list[Way]:
    """Return the ways of the routed model: as it is, and at mean shares of the pixels."""
    ways, plans = [model_way("routed", yolo, imgsz)], plans_of(yolo, some_images(data, CALIBRATED, "train"), imgsz)
    return ways + [model_way(f"routed at {share:g}", at_share(yolo, plans, share), imgsz) for share in shares]


def _placed(yolo: YOLO, base: YOLO, data: str, imgsz: int, camera: str) -> list[Way]:
    """Return the ways of as many windows as the routed model has, placed otherwise."""
    described = check_data(data, "train")
    prior = position_prior(described)
    assert prior is not None
    Prior.often = prior
    kinds: dict[str, Any] = {"random": Random, "position prior": Prior, "oracle": Oracle}
    ways = [model_way(f"{name}, as many windows", placing_by(yolo, kind), imgsz, False) for name, kind in kinds.items()]
    if camera:
        boxes = defaultdict(list)
        for path in some_images(split_images(described, "train"), sys.maxsize):
            file = Path(img2label_paths([str(path)])[0])
            if (match := re.search(camera, path.name)) and file.is_file():
                boxes[match[0]].append(label_boxes(file))
        Zone.zones = zones_of(boxes, (ZONE_CELLS, ZONE_CELLS))
        ways.append(model_way("zone of each camera, by hand", placing_by(yolo, Zone), imgsz))
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    share = float(yolo.model.yaml["mod"]["windows"]["capacity"])
    own = head_of(yolo.model).objectness  # type: ignore[union-attr]
    settings = WindowSettings(entry.window, share, "density", PASS, objectness=own)
    density = on_windows(base, settings)
    density = at_share(density, plans_of(density, some_images(data, CALIBRATED, "train"), imgsz), share)
    return [*ways, model_way(f"density, coarse pass at {PASS:g}", density, imgsz)]


def _esod(base: YOLO, data: str, imgsz: int, shares: list[float], steps: int, kept: Path) -> list[Way]:
    """Return the ways of ESOD's rule, with a seeker that is trained like our router, at mean shares of the pixels."""
    yolo = with_router(base, "stem")
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    entry.window = max(round(imgsz / PATCHES / entry.cell), 1) * entry.cell
    fit_windows(yolo.model, labelled_batches(yolo, data, imgsz), steps, resume=kept)
    yolo = placing_by(yolo, Esod)
    entry = head_of(yolo.model).entry  # type: ignore[union-attr]
    best = []
    for photo in read_images(some_images(data, CALIBRATED, "train")):
        forward_letterboxed(yolo.model, photo, imgsz)
        best.append(entry.best)
    ways = []
    for share in shares:
        own = copy_model(yolo)
        patches = entry.plan.window_share
        head_of(own.model).entry.least = _least(torch.cat(best), share / patches * len(best))  # type: ignore[union-attr]
        ways.append(model_way(f"ESOD's rule at {share:g}", own, imgsz))
    return ways


def _least(logits: torch.Tensor, count: float) -> float:
    """Return the logit that so many patches reach."""
    return float(logits.sort(descending=True).values[min(round(count), len(logits)) - 1])


if __name__ == "__main__":
    sys.exit(run_tool(opponents, str(__doc__)))
