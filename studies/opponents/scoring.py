"""How well a way finds the objects of a split: AP, by density of the images, its spread by scenes, and what is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from mod_vision.eval.accuracy.bootstrap import resampled_ap
from mod_vision.eval.accuracy.coco import Scorer, bits
from mod_vision.eval.accuracy.matching import Matches
from mod_vision.routing.labels import labelled
from mod_vision.routing.losses import tokens_in_boxes
from mod_vision.routing.lost_objects import LostObjects, Objects
from mod_vision.routing.windows import CELL
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import Letterboxed
from mod_vision.yolo.run.validate import Validation, validate
from studies.opponents.placing import Zone
from studies.opponents.ways import Found, Way

CONF = 0.001  # Ultralytics' for validation
SHOWN = 0.25  # Ultralytics' for prediction
RESAMPLES = 500


def images_of(base: YOLO, data: str, split: str) -> Validation:
    """Return the images of a split with their labels, by a validation at a size that costs little."""
    settings: dict[str, Any] = {"data": data, "imgsz": 64, "batch": 1, "device": "cpu", "split": split}
    return validate(base, lambda *_: None, **settings)


def scenes_of(files: Sequence[str], scene: str) -> np.ndarray:
    """Return the number of the scene of each image: those in whose names the pattern finds the same.

    Raises:
        ValueError: If it finds nothing in one of them.
    """
    found = [re.search(scene, file) for file in files]
    if None in found:
        raise ValueError(f"scene={scene!r} finds nothing in {files[found.index(None)]}; give a pattern that does.")
    return np.unique([match[0] for match in found if match], return_inverse=True)[1]


def draws(scenes: np.ndarray) -> np.ndarray:
    """Return how often each image is drawn if whole scenes are drawn with replacement, (RESAMPLES, images)."""
    generator, n = np.random.default_rng(0), int(scenes.max()) + 1
    often = [np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]
    return np.stack(often).astype(np.uint8)[:, scenes]


def halves(found: Validation) -> dict[str, np.ndarray]:
    """Return which images, (1, images), are the sparse half and the crowded half by their number of objects."""
    objects = np.array([len(label["cls"]) for label in found.labels])
    order = np.argsort(objects, kind="stable")
    sparse = np.zeros((1, len(objects)), np.uint8)
    sparse[0, order[: len(order) // 2]] = 1
    return {"sparse": sparse, "crowded": 1 - sparse}


def score(way: Way, found: Validation, scenes: np.ndarray, camera: str) -> dict[str, Any]:
    """Find the objects of all images of a split in a way, and return its figures for JSON.

    Args:
        way: The way.
        found: A validation of the split, for its images and labels.
        scenes: Scene of each image.
        camera: Pattern that finds the camera in the name of an image.

    Raises:
        ValueError: If the ground truth is a COCO JSON.
    """
    if found.annotations:
        raise ValueError("the data YAML names a COCO JSON, whose images have another order; leave it out here.")
    scorer, lost, find = Scorer("detect"), LostObjects(), way.prepare(CONF)
    whole: list[bool] = []
    for i, file in enumerate(found.files):
        photo, label = read_image(found.folder / file), found.labels[i]
        show_camera(file, camera)
        own, seen = with_labels(find, photo, label)
        scorer.update(found, [file], predictions(own, file))
        if own.plan is not None and own.boxed is not None:
            whole.append(own.plan.whole is not None)
            lost.update(own.plan, objects_of(seen, label, found.names, own.largest), {})
    box = scorer.result()["box"]
    places = [k for k, one in enumerate(box.classes) if one.objects]
    parts = {name: float(resampled_ap(box.matches, places, images)[0]) for name, images in halves(found).items()}
    again = resampled_ap(box.matches, places, draws(scenes))
    figures = {"name": way.name, "imgsz": way.imgsz, "AP": box.stats["AP"], "AP50": box.stats["AP50"]}
    figures |= shown_at(box.matches, range(len(box.classes)))
    figures |= {"APs": box.stats["APs"], **parts, "classes": {one.name: one.ap for one in box.classes}}
    figures |= {"windows": lost.result(), "per_image": lost.windows, "whole": whole} if lost.windows else {}
    return figures | {"resamples": [round(float(ap), 5) for ap in again]}


def score_images(way: Way, found: Validation) -> dict[str, Any]:
    """Return the figures of a way, each image its own scene, of no camera."""
    return score(way, found, scenes_of(found.files, "^.*$"), "^")


def shown_at(matches: Matches, places: Iterable[int], conf: float = SHOWN) -> dict[str, float]:
    """Return recall and precision of what is shown at a confidence, at an IoU of 0.5, over objects of all classes.

    Args:
        matches: Of all images.
        places: Places of the classes.
        conf: Lowest confidence that is shown.
    """
    shown = hits = objects = 0
    for place in places:
        rows = matches.detections.of(place)
        rows = rows[rows["score"] >= conf]
        shown += len(rows)
        hits += int(bits(rows["matched"][:, 0], 0).sum())
        objects += int(matches.objects.of(place)["count"][:, 0].sum())
    return {"recall": hits / max(objects, 1), "precision": hits / max(shown, 1)}


def show_camera(file: str, camera: str) -> None:
    """Tell zones the camera of the image that comes next."""
    match = re.search(camera, Path(file).name)
    Zone.camera = match[0] if match else ""


def with_labels(
    find: Callable[[np.ndarray], Found], photo: np.ndarray, label: dict[str, Any]
) -> tuple[Found, torch.Tensor]:
    """Find objects while routers may ask for the labels; return them, and the labels' boxes in px of the input."""

    def cells(size: tuple[int, int]) -> torch.Tensor:
        height, width = size[0] * CELL, size[1] * CELL
        gain = min(width / photo.shape[1], height / photo.shape[0])
        valid = round(photo.shape[0] * gain), round(photo.shape[1] * gain)
        top, left = (height - valid[0]) // 2, (width - valid[1]) // 2
        low, high = placed_boxes(label, photo, Letterboxed((height, width), (top, left, *valid))).split(2, 1)
        relative = torch.cat(((low + high) / 2, high - low), 1) / torch.tensor((width, height) * 2)
        return tokens_in_boxes(relative, torch.zeros(len(relative)), 1, size)

    with labelled(cells):
        own = find(photo)
    if own.boxed is None:
        return own, torch.zeros(0, 4)
    return own, placed_boxes(label, photo, own.boxed)


def placed_boxes(label: dict[str, Any], photo: np.ndarray, boxed: Letterboxed) -> torch.Tensor:
    """Return the corners (M, 4) of the labels' boxes in px of the input."""
    x, y, w, h = torch.as_tensor(label["boxes"]).float().reshape(-1, 4).unbind(1)
    top, left, height, width = boxed.valid
    across, down = width / photo.shape[1], height / photo.shape[0]
    return torch.stack((x * across + left, y * down + top, (x + w) * across + left, (y + h) * down + top), 1)


def objects_of(boxes: torch.Tensor, label: dict[str, Any], names: dict[int, str], largest: float) -> Objects:
    """Return the objects of an image but for those longer than `largest` px of the input: they are a coarse pass's."""
    areas = torch.as_tensor(label["boxes"]).float().reshape(-1, 4)[:, 2:].prod(1)
    ours = (boxes[:, 2:] - boxes[:, :2]).amax(1) <= largest
    classes = [names[int(c)] for c in np.ravel(label["cls"])[ours.numpy()]]
    return Objects(boxes[ours], areas[ours], torch.zeros(int(ours.sum()), dtype=torch.long), classes)


def predictions(own: Found, file: str) -> list[dict[str, Any]]:
    """Return what was found as COCO has it."""
    sides = own.boxes[:, 2:] - own.boxes[:, :2]
    boxes = np.concatenate((own.boxes[:, :2], sides), 1).tolist()
    return [
        {"file_name": file, "category_id": int(c), "bbox": box, "score": float(s)}
        for box, s, c in zip(boxes, own.scores, own.classes, strict=True)
    ]
