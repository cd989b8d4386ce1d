"""Ground truth in COCO's terms, image by image, from a COCO JSON or from YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

KEPT = ("category_id", "bbox", "area", "iscrowd", "segmentation")


class GroundTruth:
    """The objects of each image, made when they are asked for or held as compact as they can be.

    Attributes:
        categories: Names by COCO category id.
        image_index: Place of each image, by file name, in the order of COCO's image ids.
    """

    def __init__(
        self, categories: dict[int, str], ids: dict[str, int], content: Callable[[str], dict[str, Any]]
    ) -> None:
        """Keep what describes the images.

        Args:
            categories: Names by COCO category id.
            ids: COCO image id of each file name.
            content: Gives `width`, `height` and `annotations` of a file name.
        """
        self.categories = dict(sorted(categories.items()))
        self.image_index = {name: i for i, name in enumerate(sorted(ids, key=ids.__getitem__))}
        self._content = content

    def subset(self, files: Sequence[str]) -> dict[str, Any]:
        """Return COCO ground truth of some images alone; their ids are their `image_index`.

        Annotations are numbered from 1: some tools number from 0, which pycocotools takes for "not matched".
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name in files:
            content, image_id = self._content(name), self.image_index[name]
            images.append({"id": image_id, **{k: content[k] for k in ("width", "height") if k in content}})
            for annotation in content["annotations"]:
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": image_id})
        categories = [{"id": id_, "name": name} for id_, name in self.categories.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def from_json(path: Path, files: Sequence[str], masks: bool) -> GroundTruth:
    """Read the ground truth of some images from a COCO JSON.

    Args:
        path: The JSON.
        files: File names of the images.
        masks: Whether masks are needed.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no COCO JSON, lacks images, boxes or masks; the message names some.
    """
    source = _read(path)
    ids = _match_images(source["images"], files)
    categories = {category["id"]: category["name"] for category in source["categories"]}
    images = {image["id"]: image for image in source["images"]}
    contents: dict[str, dict[str, Any]] = {}
    names = {id_: name for name, id_ in ids.items()}
    for name, id_ in ids.items():
        contents[name] = {k: images[id_][k] for k in ("width", "height") if k in images[id_]} | {"annotations": []}
    for annotation in source["annotations"]:
        file = names.get(annotation["image_id"])
        if file is not None and annotation["category_id"] in categories:
            contents[file]["annotations"].append(_compact(annotation, contents[file], masks))
    return GroundTruth(categories, ids, contents.__getitem__)


def from_labels(labels: Sequence[dict[str, Any]], files: Sequence[str], names: dict[int, str]) -> GroundTruth:
    """Build ground truth from YOLO labels, for data sets without a COCO JSON.

    The size of an object is the area of its polygon, as in COCO, or that of its box if the labels have no polygons.

    Args:
        labels: Per image: width, height in pixels, cls (n,), boxes (n, 4) as pixel x, y, w, h, and segments, a list of
            n pixel polygons (p, 2), empty without masks. One is read when its image is scored.
        files: File name of each image.
        names: Class names by index; category ids are one more.
    """
    ids = {name: i for i, name in enumerate(files)}

    def content(name: str) -> dict[str, Any]:
        label = labels[ids[name]]
        annotations = [_from_label(label, i) for i in range(len(label["cls"]))]
        return {"width": label["width"], "height": label["height"], "annotations": annotations}

    return GroundTruth({index + 1: name for index, name in names.items()}, ids, content)


def match_categories(truth: GroundTruth, names: dict[int, str]) -> dict[int, int]:
    """Return the COCO category id of each class index, by name.

    Raises:
        ValueError: If the ground truth has none of the classes.
    """
    by_name = {name: id_ for id_, name in truth.categories.items()}
    matched = {index: by_name[name] for index, name in names.items() if name in by_name}
    if not matched:
        raise ValueError(
            f"no class of the model is a category of the COCO JSON: the model has {', '.join(list(names.values())[:5])}"
            f", the JSON {', '.join(list(by_name)[:5])}."
        )
    return matched


def _read(path: Path) -> dict[str, Any]:
    """Read a COCO JSON and check that it is one."""
    if not path.is_file():
        raise FileNotFoundError(f"COCO JSON {path} does not exist.")
    try:
        source = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    missing = [k for k in ("images", "annotations", "categories") if not isinstance(source, dict) or k not in source]
    if missing:
        raise ValueError(f"{path} is no COCO ground truth: it lacks {', '.join(missing)}.")
    return dict(source)


def _match_images(images: Sequence[dict[str, Any]], files: Sequence[str]) -> dict[str, int]:
    """Return the COCO image id of each file name."""
    ids = {Path(image["file_name"]).name: image["id"] for image in images}
    missing = [name for name in files if name not in ids]
    if missing:
        raise ValueError(
            f"the COCO JSON lacks {len(missing)} of {len(files)} images of the data set, such as {missing[0]}; use the "
            "JSON of this split."
        )
    return {name: ids[name] for name in files}


def _compact(annotation: dict[str, Any], image: dict[str, Any], masks: bool) -> dict[str, Any]:
    """Return what scoring needs of an annotation, its mask as compressed run lengths."""
    kept = {k: annotation[k] for k in KEPT if k in annotation}
    if "bbox" not in kept:
        raise ValueError(f"annotation {annotation.get('id')} of the COCO JSON has no bbox.")
    kept.setdefault("iscrowd", 0)  # pycocotools needs these, tools do not all write them
    kept.setdefault("area", kept["bbox"][2] * kept["bbox"][3])
    mask = kept.pop("segmentation", None)
    if masks and not mask:
        raise ValueError(
            f"annotation {annotation.get('id')} of the COCO JSON has a box without a mask, so it cannot score a "
            "segmentation model's masks."
        )
    if masks and isinstance(mask, list) and not {"width", "height"} <= set(image):
        raise ValueError("images of the COCO JSON lack width and height, without which polygons are no masks.")
    return kept | {"segmentation": _run_lengths(mask, image)} if masks else kept


def _run_lengths(mask: Any, image: dict[str, Any]) -> dict[str, Any]:
    """Return polygons, run lengths or compressed ones as compressed ones, as pycocotools' `annToRLE` does."""
    if isinstance(mask, list):
        return dict(mask_utils.merge(mask_utils.frPyObjects(mask, image["height"], image["width"])))
    if isinstance(mask["counts"], list):
        return dict(mask_utils.frPyObjects(mask, *mask["size"]))
    return dict(mask)


def _from_label(label: dict[str, Any], i: int) -> dict[str, Any]:
    """Return one object of a label as a COCO annotation."""
    box = [float(v) for v in label["boxes"][i]]
    annotation = {"category_id": int(label["cls"][i]) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    if len(label["segments"]):
        mask = _run_lengths([label["segments"][i].reshape(-1).tolist()], label)
        annotation |= {"segmentation": mask, "area": float(mask_utils.area(mask))}
    return annotation
