"""COCO metrics by pycocotools, for any data set, any category ids and any number of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval, Params

from mod_vision.eval.accuracy.ground_truth import GroundTruth, Id, from_json, from_labels, match_categories, some_of
from mod_vision.eval.accuracy.matching import AREAS, BITS, THRESHOLDS, Matches, check_engine
from mod_vision.measure import Measure
from mod_vision.yolo.run.validate import Validation

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KINDS = {"detect": {"box": "bbox"}, "segment": {"box": "bbox", "mask": "segm"}}  # COCO's name of each by ours
AT_ONCE = 64  # images that are matched together


class ClassScore(NamedTuple):
    """Figures of one class; AP is in [0, 1], and -1 where there are no objects.

    Attributes:
        id: COCO category id.
        name: Of the class.
        objects: Objects that count, all and by size: crowds do not.
        small: Objects up to 32 x 32 pixels.
        medium: Objects up to 96 x 96 pixels.
        large: Larger ones.
        ap: Mean over the IoU thresholds 0.50 to 0.95.
        ap50: At IoU 0.50.
        ap_small: AP of small objects.
        ap_medium: AP of medium ones.
        ap_large: AP of large ones.
    """

    id: Id
    name: str
    objects: int
    small: int
    medium: int
    large: int
    ap: float
    ap50: float
    ap_small: float
    ap_medium: float
    ap_large: float


@dataclass
class Scores:
    """What one kind of prediction scores.

    Attributes:
        stats: COCO's twelve numbers in [0, 1] by name; those without ground truth are -1, as in COCO's own tools.
        classes: Figures per class, in the order of COCO's category ids.
        matches: What they were computed from.
    """

    stats: dict[str, float]
    classes: list[ClassScore]
    matches: Matches


class Scorer(Measure):
    """Scores predictions that come batch by batch, and keeps of them only how they matched."""

    def __init__(self, task: str, annotations: Path | None = None, engine: str = "pycocotools") -> None:
        """Prepare to score; ground truth is read with the first batch.

        Args:
            task: `detect` or `segment`.
            annotations: COCO JSON; wins over the one that the data YAML names. Without either, ground truth is built
                from the YOLO labels.
            engine: What matches: `pycocotools`, or `faster` for faster-coco-eval.

        Raises:
            ValueError: If there is no such engine.
            ImportError: If the engine is not installed.
        """
        check_engine(engine)
        self.annotations = annotations
        self.task, self.engine = task, engine
        self.reset()

    def reset(self) -> None:
        """Start anew, with the ground truth of the next batch."""
        self.matches = {name: Matches(kind, self.engine) for name, kind in KINDS[self.task].items()}
        self._truth: tuple[GroundTruth, dict[int, int]] | None = None

    def update(self, found: Validation, files: Sequence[str], predictions: Sequence[dict[str, Any]]) -> None:
        """Match the predictions of some images.

        Args:
            found: The validation they belong to, with labels and names.
            files: File names of the images, also of those without predictions.
            predictions: All predictions for them, with file_name and the class index as category_id.

        Raises:
            FileNotFoundError: If the COCO JSON is missing.
            ValueError: If it lacks images, masks or classes, or has objects of classes that the model does not have.
        """
        truth, categories = self._truth or self._read_truth(found)
        by_file: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
        for p in predictions:
            if p["category_id"] in categories:
                by_file[p["file_name"]].append(p)
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            subset = truth.subset(some)
            for name, image in zip(some, subset["images"], strict=True):
                _check_size(name, image, by_file[name])
            for matches in self.matches.values():
                what = (
                    "bbox" if matches.kind == "bbox" else "segmentation"
                )  # alone, so that sizes are those of boxes or masks
                matches.add(
                    {**subset, "annotations": [dict(a) for a in subset["annotations"]]},
                    [
                        {
                            "image_id": truth.image_index[name],
                            "category_id": categories[p["category_id"]],
                            "score": p["score"],
                            what: p[what],
                        }
                        for name in some
                        for p in by_file[name]
                    ],
                )

    def result(self) -> dict[str, Scores]:
        """Return what all that was added scores: `box`, and `mask` if the task is segmentation."""
        names = self._truth[0].categories if self._truth else {}
        return {kind: summarise(matches, names) for kind, matches in self.matches.items()}

    def _read_truth(self, found: Validation) -> tuple[GroundTruth, dict[int, int]]:
        """Read the ground truth of a validation, and the category of each class index."""
        path = self.annotations or found.annotations
        if path:
            truth = from_json(path, found.files, "mask" in self.matches, found.folder)
            truth = truth if found.zone_filter is None else truth.within(found.zone_filter)
        else:
            truth = from_labels(found.labels, found.files, found.names)
        categories = match_categories(truth, found.names)
        if lacking := [name for index, name in found.names.items() if index not in categories]:
            print(f"warning: the COCO JSON has no category for the model's {some_of(lacking)}; not scored", flush=True)
        self._truth = truth, categories
        return self._truth


def _check_size(name: str, image: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> None:
    """Refuse ground truth of another size than the image's, whose masks would match nothing.

    Raises:
        ValueError: If the sizes differ.
    """
    masks = [p["segmentation"]["size"] for p in predictions if "segmentation" in p and "height" in image]
    if masks and list(masks[0]) != [image["height"], image.get("width")]:
        height, width = masks[0]
        raise ValueError(
            f"{name} has {width}x{height} pixels, and in the COCO JSON {image.get('width')}x{image['height']}; use the "
            "JSON of these images."
        )


def summarise(matches: Matches, names: dict[Id, str]) -> Scores:
    """Compute COCO's numbers from matches.

    Args:
        matches: Of all images.
        names: Names by COCO category id, of all categories that count; matches have their places.
    """
    params = Params(matches.kind)
    counts = np.array([matches.objects.of(k)["count"].sum(axis=0, dtype=int) for k in range(len(names))])
    present = [k for k in range(len(names)) if counts[k].any()]  # the others would take memory for nothing
    shape = (THRESHOLDS, len(params.recThrs), len(present), AREAS, len(params.maxDets))
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    for place, k in enumerate(present):
        _curves(matches, k, counts[k], params, precision[:, :, place], recall[:, place])
    summary = COCOeval(iouType=matches.kind)
    summary.eval = {"precision": precision, "recall": recall}
    with contextlib.redirect_stdout(io.StringIO()):
        summary.summarize()
    aps = {k: _class_ap(precision[:, :, place]) for place, k in enumerate(present)}
    classes = [
        ClassScore(category, name, *counts[k].tolist(), *aps.get(k, [-1.0] * 5))
        for k, (category, name) in enumerate(names.items())
    ]
    return Scores(dict(zip(STATS, map(float, summary.stats), strict=True)), classes, matches)


def sorted_detections(matches: Matches, category: int) -> np.ndarray:
    """Return the detections of a category, highest score first, and among equals in the order pycocotools has them.

    Those that score less than the last one with an object are left out: precision there is never the highest.
    """
    rows = matches.detections.of(category)
    lowest = rows["score"][rows["matched"].any(axis=1)].min(initial=np.inf)
    rows = rows[rows["score"] >= lowest]
    return rows[np.lexsort((rows["rank"], rows["image"], -rows["score"]))]


def bits(values: np.ndarray, threshold: int) -> np.ndarray:
    """Return which of some bit fields have the bit of an IoU threshold."""
    return (values & BITS[threshold]) != 0


def _curves(
    matches: Matches, category: int, objects: np.ndarray, params: Params, precision: np.ndarray, recall: np.ndarray
) -> None:
    """Fill in the precision (T, R, A, M) and recall (T, A, M) of a category, as pycocotools' `accumulate` does."""
    every = sorted_detections(matches, category)
    for m, limit in enumerate(params.maxDets):
        rows = every[every["rank"] < limit]
        for a in np.flatnonzero(objects).tolist():
            for t in range(THRESHOLDS):
                counted = ~bits(rows["ignored"][:, a], t)
                hits = np.flatnonzero(bits(rows["matched"][:, a], t) & counted)
                found = np.arange(1, len(hits) + 1)
                # precision falls between hits, so its envelope has its steps there
                steps = envelope(found / (np.cumsum(counted)[hits] + np.spacing(1)))
                at = np.searchsorted(found / objects[a], params.recThrs)
                precision[t, :, a, m] = np.append(steps, 0)[at]
                recall[t, a, m] = len(hits) / objects[a]


def envelope(precision: np.ndarray) -> np.ndarray:
    """Return, at each place of the last axis, the highest precision from there on."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _class_ap(precision: np.ndarray) -> list[float]:
    """Return AP, AP50, and AP of small, medium and large objects from the precision (T, R, A, M) of a class."""
    best = precision[..., -1]
    return [float(part.mean()) for part in (best[:, :, 0], best[0, :, 0], best[:, :, 1], best[:, :, 2], best[:, :, 3])]
