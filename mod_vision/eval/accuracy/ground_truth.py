"""Ground truth in COCO's terms, image by image, from a COCO JSON or from YOLO labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

from pycocotools import mask as mask_utils

from mod_vision.eval.accuracy.annotation_checks import (
    check_area,
    check_box,
    check_polygons,
    check_runs,
    check_size,
    refuse,
)
from mod_vision.limits import MAX_MASKS, check_classes
from mod_vision.text import printable
from mod_vision.yolo.data.zone_filter import ZoneFilter

LETTERS = 60  # of the name of a class
KEPT = ("bbox", "area", "iscrowd", "segmentation")
ID = (int, float, str)
KEYS: dict[str, dict[str, Any]] = {  # what scoring cannot do without
    "images": {"id": ID, "file_name": str},
    "annotations": {"image_id": ID, "category_id": ID},
    "categories": {"id": ID, "name": ID},
}
Id: TypeAlias = int | float | str


class GroundTruth:
    """The objects of each image, made when they are asked for or held as compact as they can be.

    Images and categories go by their places in the order of COCO's ids, which can be anything.

    Attributes:
        categories: Names by COCO category id, in their order.
        image_index: Place of each image, by file name.
        in_use: Places of the categories that are known to have objects.
    """

    def __init__(
        self,
        categories: dict[Id, str],
        ids: dict[str, Id],
        content: Callable[[str], dict[str, Any]],
        in_use: Iterable[int] = (),
    ) -> None:
        """Keep what describes the images.

        Args:
            categories: Names by COCO category id, in the order of `in_order`.
            ids: COCO image id of each file name.
            content: Gives `width`, `height` and `annotations` of a file name; category_id is the category's place.
            in_use: Places of the categories that are known to have objects.
        """
        self.categories = categories
        self.image_index = {name: i for i, name in enumerate(sorted(ids, key=lambda name: in_order(ids[name])))}
        self.in_use = frozenset(in_use)
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
        categories = [{"id": k, "name": name} for k, name in enumerate(self.categories.values())]
        return {"images": images, "annotations": annotations, "categories": categories}

    def within(self, zone_filter: ZoneFilter) -> GroundTruth:
        """Return the objects in a zone alone, and crowds; `subset` raises where it is not known of an image."""
        new = copy(self)
        new._content = lambda name: zone_filter.content(self._content(name), name)
        return new


def in_order(id_: Id) -> tuple[bool, Id]:
    """Return what ids of COCO are sorted by: numbers come before strings."""
    return isinstance(id_, str), id_


def from_json(path: Path, files: Sequence[str], masks: bool, folder: Path = Path()) -> GroundTruth:
    """Read the ground truth of some images from a COCO JSON.

    Args:
        path: The JSON.
        files: File names of the images.
        masks: Whether masks are needed.
        folder: What the file names are relative to.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no COCO JSON, lacks images, boxes or masks, or contradicts itself; the message names some.
    """
    source = _read(path)
    images = {image["id"]: image for image in source["images"]}
    categories = {c["id"]: c["name"] for c in sorted(source["categories"], key=lambda c: in_order(c["id"]))}
    places = {id_: k for k, id_ in enumerate(categories)}
    ids = _match_images(source["images"], files, folder)
    contents = {
        id_: {k: images[id_][k] for k in ("width", "height") if k in images[id_]} | {"annotations": []}
        for id_ in ids.values()
    }
    in_use, mask_bytes = set(), 0
    if source["annotations"] and not any(annotation["image_id"] in images for annotation in source["annotations"]):
        wrong = source["annotations"][0]["image_id"]
        raise ValueError(
            f"{path}: annotations[0] has image_id={wrong!r}, which the JSON does not list, nor any other's."
        )
    for i, annotation in enumerate(source["annotations"]):
        image, category = contents.get(annotation["image_id"]), annotation["category_id"]
        if image is not None:
            if category not in places:
                raise ValueError(
                    f"{path}: annotations[{i}] has category_id={category!r}, which the JSON does not list."
                )
            where = f"{path}: annotation {annotation.get('id', f'[{i}]')}"
            compact = _compact(annotation, image, masks, where) | {"category_id": places[category]}
            image["annotations"].append(compact)
            mask_bytes += len(compact["segmentation"]["counts"]) if masks else 0
            if mask_bytes > MAX_MASKS:
                raise ValueError(f"{path}: its masks take more than {MAX_MASKS:,} bytes; score it in parts.")
            if not compact["iscrowd"]:
                in_use.add(compact["category_id"])
    return GroundTruth(categories, ids, lambda name: contents[ids[name]], in_use)


def from_labels(labels: Sequence[dict[str, Any]], files: Sequence[str], names: dict[int, str]) -> GroundTruth:
    """Build ground truth from YOLO labels, for data sets without a COCO JSON.

    The size of an object is the area of its polygon, as in COCO, or that of its box if the labels have no polygons.

    Args:
        labels: Per image: width, height in pixels, cls (n,), boxes (n, 4) as pixel x, y, w, h, and segments, a list of
            n pixel polygons (p, 2), empty without masks. One is read when its image is scored.
        files: File name of each image.
        names: Class names by index, from 0; category ids are one more.
    """
    ids: dict[str, Id] = {name: i for i, name in enumerate(files)}

    def content(name: str) -> dict[str, Any]:
        label = labels[int(ids[name])]
        annotations = [_from_label(label, i, f"object {i} of {name}") for i in range(len(label["cls"]))]
        return {"width": label["width"], "height": label["height"], "annotations": annotations}

    return GroundTruth({index + 1: names[index] for index in sorted(names)}, ids, content)


def match_categories(truth: GroundTruth, names: dict[int, str]) -> dict[int, int]:
    """Return the place of the category of each class index, by name.

    Raises:
        ValueError: If the ground truth has none of the classes, or objects of a category that is no class.
    """
    categories = list(truth.categories.values())
    by_name = {name: k for k, name in enumerate(categories)}
    matched = {index: by_name[name] for index, name in names.items() if name in by_name}
    if not matched:
        raise ValueError(
            f"no class of the model is a category of the COCO JSON: the model has {some_of(list(names.values()))}"
            f", the JSON {some_of(categories)}."
        )
    if strange := [categories[k] for k in sorted(truth.in_use - set(matched.values()))]:
        raise ValueError(
            f"the COCO JSON has objects of {some_of(strange)}, and the model has no class of that name: case and "
            "spaces count."
        )
    return matched


def some_of(names: Sequence[Any], limit: int = 5) -> str:
    """Return the first of some names as text."""
    return ", ".join(printable(name, LETTERS) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )


def _read(path: Path) -> dict[str, Any]:
    """Read a COCO JSON and check that it is one."""
    if not path.is_file():
        raise FileNotFoundError(f"COCO JSON {path} does not exist.")
    try:
        source = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    missing = [k for k in ("images", "annotations", "categories") if not isinstance(source, dict) or k not in source]
    if missing:
        raise ValueError(f"{path} is no COCO ground truth: it lacks {', '.join(missing)}.")
    for part, keys in KEYS.items():
        _check_items(f"{path}: {part}", source[part], keys)
    check_classes(len(source["categories"]), str(path))
    return dict(source)


def _check_items(what: str, items: Any, keys: dict[str, Any]) -> None:
    """Check that a part of a COCO JSON is a list whose items have some keys."""
    if not isinstance(items, list):
        raise ValueError(f"{what} is no list.")
    for i, item in enumerate(items):
        for key, types in keys.items():
            value = item.get(key) if isinstance(item, dict) else None
            if not isinstance(value, types) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"{what}[{i}] has no {key}." if value is None else f"{what}[{i}] has {key}={value!r}.")


def _match_images(images: Sequence[dict[str, Any]], files: Sequence[str], folder: Path) -> dict[str, Id]:
    """Return the COCO image id of each file name."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        by_name.setdefault(Path(image["file_name"]).name, []).append(image)
    missing = [name for name in files if Path(name).name not in by_name]
    if missing:
        raise ValueError(
            f"the COCO JSON lacks {len(missing)} of {len(files)} images of the data set, such as {missing[0]}; use the "
            "JSON of this split."
        )
    ids = {name: _closest(name, folder, by_name[Path(name).name])["id"] for name in files}
    taken: dict[Id, str] = {}
    for name, id_ in ids.items():
        if taken.setdefault(id_, name) != name:
            raise ValueError(
                f"the images {taken[id_]} and {name} of the data set are both image {id_} of the COCO JSON."
            )
    return ids


def _closest(name: str, folder: Path, images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the one of some images with the same base name whose path is that of a file, or else ends most like it."""
    if len(images) == 1:
        return images[0]
    exact = [image for image in images if image["file_name"] == name]
    lengths = [_common_end(folder / name, Path(image["file_name"])) for image in images]
    best = exact or [image for image, length in zip(images, lengths, strict=True) if length == max(lengths)]
    if len(best) > 1:
        first, second = (f"{image['file_name']} (id {image['id']})" for image in best[:2])
        raise ValueError(f"{name} of the data set could be {first} or {second} of the COCO JSON.")
    return best[0]


def _common_end(a: Path, b: Path) -> int:
    """Return how many of their last parts two paths share."""
    same = (one == other for one, other in zip(reversed(a.parts), reversed(b.parts), strict=False))
    return sum(takewhile(bool, same))


def _compact(annotation: dict[str, Any], image: dict[str, Any], masks: bool, where: str) -> dict[str, Any]:
    """Return what scoring needs of an annotation, its mask as compressed run lengths."""
    kept = {k: annotation[k] for k in KEPT if k in annotation}
    if "bbox" not in kept:
        refuse(where, "has no bbox.")
    box = check_box(kept["bbox"], where)
    if kept.setdefault("iscrowd", 0) not in (0, 1):  # pycocotools needs these, tools do not all write them
        refuse(where, f"has iscrowd={kept['iscrowd']!r:.200}; it must be 0 or 1.")
    mask = kept.pop("segmentation", None)
    if isinstance(mask, list):  # some tools write empty polygons, or lines, for objects that have only a box
        mask = [polygon for polygon in mask if isinstance(polygon, list) and len(polygon) >= 6]
    if masks and not mask:
        refuse(where, "has a box without a mask, so it cannot score a segmentation model's masks.")
    drawable = bool(mask) and {"width", "height"} <= set(image)
    if masks and not drawable:
        refuse(where, "is of an image without width and height, without which there is no mask.")
    runs = _run_lengths(mask, image, where) if drawable and (masks or "area" not in kept) else None
    kept["area"] = check_area(kept.get("area", float(mask_utils.area(runs)) if runs else box[2] * box[3]), where)
    return kept | {"segmentation": runs} if masks else kept


def _run_lengths(mask: Any, image: dict[str, Any], where: str) -> dict[str, Any]:
    """Return polygons, run lengths or compressed ones as compressed ones, as pycocotools' `annToRLE` does."""
    height, width = size = check_size(image["height"], image["width"], f"{where}: its image")
    if isinstance(mask, list):
        return dict(mask_utils.merge(mask_utils.frPyObjects(check_polygons(mask, size, where), height, width)))
    if not isinstance(mask, dict):
        refuse(where, f"has segmentation={mask!r:.200}; it must be polygons or run lengths.")
    mask = check_runs(mask, size, where)
    return mask if isinstance(mask["counts"], str) else dict(mask_utils.frPyObjects(mask, height, width))


def _from_label(label: dict[str, Any], i: int, where: str) -> dict[str, Any]:
    """Return one object of a label as a COCO annotation."""
    box = [float(v) for v in label["boxes"][i]]
    annotation = {"category_id": int(label["cls"][i]), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    if len(label["segments"]):
        mask = _run_lengths([label["segments"][i].reshape(-1).tolist()], label, where)
        annotation |= {"segmentation": mask, "area": float(mask_utils.area(mask))}
    return annotation
