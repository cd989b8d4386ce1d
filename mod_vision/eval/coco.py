"""COCO metrics by pycocotools, for any data set and any category ids."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def load_ground_truth(source: Path | dict[str, Any]) -> COCO:
    """Load ground truth from a COCO JSON file or its content.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no COCO JSON, or lacks images, annotations or categories.
    """
    name = str(source) if isinstance(source, Path) else "COCO ground truth"
    if isinstance(source, Path):
        if not source.is_file():
            raise FileNotFoundError(f"COCO JSON {source} does not exist.")
        try:
            source = json.loads(source.read_text())
        except ValueError as error:
            raise ValueError(f"{name} is not valid JSON: {error}") from None
    missing = [k for k in ("images", "annotations", "categories") if not isinstance(source, dict) or k not in source]
    if missing or not isinstance(source, dict):
        raise ValueError(f"{name} is no COCO ground truth: it lacks {', '.join(missing)}.")
    coco = COCO()
    coco.dataset = source
    for annotation in source["annotations"]:  # pycocotools needs these, tools do not all write them
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def match_images(coco: COCO, files: Sequence[str]) -> dict[str, int]:
    """Return the COCO image id of each file name.

    Raises:
        ValueError: If images of the data set are missing from the JSON; the message names some.
    """
    ids = {Path(image["file_name"]).name: image["id"] for image in coco.dataset["images"]}
    missing = [name for name in files if name not in ids]
    if missing:
        raise ValueError(
            f"the COCO JSON lacks {len(missing)} of {len(files)} images of the data set, such as {missing[0]}; use the "
            "JSON of this split."
        )
    return {name: ids[name] for name in files}


def match_categories(coco: COCO, names: dict[int, str]) -> dict[int, int]:
    """Return the COCO category id of each class index, by name.

    Raises:
        ValueError: If the JSON has none of the classes.
    """
    by_name = {category["name"]: category["id"] for category in coco.dataset["categories"]}
    matched = {index: by_name[name] for index, name in names.items() if name in by_name}
    if not matched:
        raise ValueError(
            f"no class of the model is a category of the COCO JSON: the model has {', '.join(list(names.values())[:5])}"
            f", the JSON {', '.join(list(by_name)[:5])}."
        )
    return matched


def evaluate(coco: COCO, predictions: list[dict[str, Any]], kind: str, image_ids: list[int]) -> dict[str, float]:
    """Score predictions in COCO's format.

    Args:
        coco: Ground truth.
        predictions: Each with image_id, category_id, score, bbox, and segmentation for masks.
        kind: "bbox" or "segm".
        image_ids: Images to score.

    Raises:
        ValueError: If masks are to be scored and the ground truth lacks some.

    Returns:
        COCO's twelve numbers in [0, 1] by name; those without ground truth are -1, as in COCO's own tools. Without
        predictions, AP and AR are 0.
    """
    if kind == "segm" and any("segmentation" not in a for a in coco.dataset["annotations"]):
        raise ValueError("the COCO JSON has boxes without masks, so it cannot score a segmentation model's masks.")
    if not predictions:
        return dict.fromkeys(STATS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        scored = COCOeval(coco, coco.loadRes([dict(p) for p in predictions]), kind)
        scored.params.imgIds = image_ids
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return dict(zip(STATS, map(float, scored.stats), strict=True))


def ground_truth_from_labels(labels: list[dict[str, Any]], names: dict[int, str]) -> dict[str, Any]:
    """Build COCO ground truth from YOLO labels, for data sets without a COCO JSON.

    Args:
        labels: Per image: file_name, width, height in pixels, cls (n,), boxes (n, 4) as pixel x, y, w, h, and segments,
            a list of n pixel polygons (p, 2), empty without masks.
        names: Class names by index.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, label in enumerate(labels, 1):
        images.append({"id": image_id, **{k: label[k] for k in ("file_name", "width", "height")}})
        for i, (cls, box) in enumerate(zip(label["cls"], label["boxes"], strict=True)):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(cls) + 1,
                "bbox": [float(v) for v in box],
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
            }
            if len(label["segments"]):
                annotation["segmentation"] = [label["segments"][i].reshape(-1).tolist()]
            annotations.append(annotation)
    categories = [{"id": index + 1, "name": name} for index, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
