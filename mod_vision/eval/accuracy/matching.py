"""Predictions matched to ground truth by COCO's tools, kept as small records instead of COCO's own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mod_vision.eval.accuracy.records import Records

ENGINES = ("pycocotools", "faster")
AREAS, THRESHOLDS = len(Params("bbox").areaRng), len(Params("bbox").iouThrs)
DETECTION = np.dtype(  # `matched` and `ignored` have a bit per IoU threshold
    [
        ("category", "<i4"),
        ("image", "<u4"),
        ("rank", "u1"),  # within image and category, by score; COCO counts up to 100
        ("score", "<f8"),
        ("matched", "<u2", AREAS),
        ("ignored", "<u2", AREAS),
    ]
)
OBJECTS = np.dtype([("category", "<i4"), ("image", "<u4"), ("count", "<u2", AREAS)])  # without crowds
BITS = (1 << np.arange(THRESHOLDS)).astype(np.uint16)


class ImageMatch(NamedTuple):
    """One image, category and range of areas, as COCO's tools give it.

    Attributes:
        scores: (D,) of the detections, highest first.
        matched: (T, D), true where a detection has an object at an IoU threshold.
        ignored: (T, D), true where it does not count.
        objects_ignored: (G,), true for objects that do not count.
    """

    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    objects_ignored: np.ndarray


def check_engine(engine: str) -> None:
    """Check that an engine exists and is installed.

    Raises:
        ValueError: If there is no such engine.
        ImportError: If it is not installed; the message says how to.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "faster" and importlib.util.find_spec("faster_coco_eval") is None:
        raise ImportError(
            "engine=faster needs faster-coco-eval, which is not installed: pip install 'mod-vision[fast]'."
        )


class Matches:
    """What is left of predictions and ground truth once they are matched: all that AP and AR depend on.

    Attributes:
        kind: `bbox` or `segm`.
        detections: Records of type `DETECTION`.
        objects: Records of type `OBJECTS`.
    """

    def __init__(self, kind: str, engine: str = "pycocotools") -> None:
        self.kind, self.engine = kind, engine
        self.detections, self.objects = Records(DETECTION), Records(OBJECTS)

    def add(self, truth: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> None:
        """Match the predictions of some images, all there are of them.

        Args:
            truth: COCO ground truth of these images.
            predictions: Each with image_id, category_id, score, and bbox or segmentation.
        """
        found = {item["category_id"] for item in (*truth["annotations"], *predictions)}
        categories = sorted(found & {category["id"] for category in truth["categories"]})
        images = sorted(image["id"] for image in truth["images"])
        if not categories:
            return
        match = _match_faster if self.engine == "faster" else _match
        parts = match(truth, list(predictions), self.kind, images, categories)
        by_area = [[next(parts) for _ in range(AREAS * len(images))] for _ in categories]
        detections, objects = [], []
        for (k, category), (i, image) in product(enumerate(categories), enumerate(images)):
            areas = by_area[k][i :: len(images)]
            if areas[0] is not None:
                detections.append(_detection_rows(category, image, areas))
                objects.append(_object_row(category, image, areas))
        self.detections.add(np.concatenate(detections))
        self.objects.add(np.concatenate(objects))


def _detection_rows(category: int, image: int, areas: Sequence[Any]) -> np.ndarray:
    """Return records of the detections of one image and category."""
    rows = np.zeros(len(areas[0].scores), DETECTION)
    rows["category"], rows["image"], rows["rank"] = category, image, np.arange(len(rows))
    rows["score"] = areas[0].scores
    for a, area in enumerate(areas):
        rows["matched"][:, a] = BITS @ area.matched.astype(np.uint16)
        rows["ignored"][:, a] = BITS @ area.ignored.astype(np.uint16)
    return rows


def _object_row(category: int, image: int, areas: Sequence[Any]) -> np.ndarray:
    """Return the record of the objects of one image and category."""
    counts = [np.count_nonzero(area.objects_ignored == 0) for area in areas]
    return np.array([(category, image, counts)], OBJECTS)


def _match(
    truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str, images: list[int], categories: list[int]
) -> Iterator[ImageMatch | None]:
    """Match with pycocotools; gives category by category, area by area, image by image."""
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = truth
        coco.createIndex()
        scored = COCOeval(coco, coco.loadRes(predictions) if predictions else COCO(), kind)
        scored.params.imgIds, scored.params.catIds = images, categories
        scored.evaluate()
    for part in scored.evalImgs:
        yield part and ImageMatch(part["dtScores"], part["dtMatches"] != 0, part["dtIgnore"], part["gtIgnore"])


def _match_faster(
    truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str, images: list[int], categories: list[int]
) -> Iterator[ImageMatch | None]:
    """The same with faster-coco-eval, whose results can be read only as they are pickled."""
    import faster_coco_eval as faster

    coco = faster.COCO(truth)
    found = coco.loadRes(predictions) if predictions else faster.COCO({**truth, "annotations": []})
    scored = faster.COCOeval_faster(coco, found, kind, separate_eval=True, print_function=lambda *_: None)
    scored.params.imgIds, scored.params.catIds = images, categories
    scored.evaluate()
    for part in scored._evalImgs_cpp:
        matched, _, scores, objects_ignored, ignored, *_ = part.__getstate__()
        shape = (THRESHOLDS, len(scores))
        if scores or objects_ignored:
            yield ImageMatch(
                np.array(scores),
                np.array(matched, dtype=np.int64).reshape(shape) != 0,
                np.array(ignored, dtype=bool).reshape(shape),
                np.array(objects_ignored, dtype=bool),
            )
        else:
            yield None
