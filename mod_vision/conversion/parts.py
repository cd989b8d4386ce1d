"""The images that a conversion looks at: some of the training split to learn from, some kept aside to choose on."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from ultralytics import YOLO
from ultralytics.data.utils import img2label_paths

from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.data.description import annotations_file, split_images
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.images import evenly_spaced, some_images

RUNS, KEPT = 8, 0.15  # the images are cut into runs; of each, the last part is kept aside: neighbours look alike
MOST_KEPT, MOST_TAUGHT = 100, 1500  # images
KEYS = ("channels", "kpt_shape", "kpt_oks_sigmas", "flip_idx")  # of a data YAML, beside paths and names
CONFIDENT = 0.25  # lowest score of a detection that stands for a label


class Parts(NamedTuple):
    """A data set as a conversion uses it.

    Attributes:
        data: Data YAML: `train` to learn from, `test` kept aside from the training images, `val` to report on.
        kept: Images that are kept aside.
        taught: Whether `val` has the dense model's detections for labels, and no others.
    """

    data: str
    kept: list[Path]
    taught: bool


def divide(data: str, folder: Path, teacher: YOLO | None = None, imgsz: int = 640) -> Parts:
    """Divide the training split of a data set, and describe the parts by a data YAML of their own.

    Args:
        data: Data YAML.
        folder: Where the YAML goes, and what it names.
        teacher: A dense model whose confident detections stand for labels, None to take the labels.
        imgsz: Image size in pixels for the teacher.

    Raises:
        FileNotFoundError: If data or images are missing.
        ValueError: If there are too few images.
    """
    described, folder = check_data(data, "train"), writable_dir(folder)
    images = sorted(set(some_images(split_images(described, "train"), sys.maxsize)))
    if len(images) < 2 * RUNS:
        raise ValueError(f"{data}: `train` has {len(images)} images, a conversion needs {2 * RUNS} at least.")
    fitted, kept = _cut(images)
    kept = evenly_spaced(kept, MOST_KEPT)
    content: dict[str, Any] = {"path": str(described["path"]), "names": described["names"]}
    content |= {key: described[key] for key in KEYS if key in described}
    val, taught = described.get("val"), False
    if teacher is not None:
        if teacher.task == "pose":
            content["kpt_shape"] = list(teacher.model.kpt_shape)
        fitted = _taught(teacher, fitted, folder, "train", imgsz)
        kept = _taught(teacher, kept, folder, "kept", imgsz)
        if not any(path.stat().st_size for path in (folder / "labels").rglob("*.txt")):
            raise ValueError(
                f"labels=False: the model is confident ({CONFIDENT} or more) of no object in {len(fitted) + len(kept)} "
                f"images of `train`, so there is nothing to learn from; train it on at imgsz={imgsz}, or give labels."
            )
        shown = sorted(some_images(val, sys.maxsize)) if val else []
        taught = bool(shown) and not any(Path(path).is_file() for path in img2label_paths([str(p) for p in shown]))
        if taught:
            shown = _taught(teacher, shown, folder, "val", imgsz)
            val = _listed(shown, folder / "val.txt")
    if not val:
        raise FileNotFoundError(f"{data}: `val` names no images; a conversion reports what it gains and loses on them.")
    if not taught and (file := annotations_file(described, "val")):
        content["annotations"] = {"val": str(file)}
    content |= {"train": _listed(fitted, folder / "train.txt"), "test": _listed(kept, folder / "kept.txt"), "val": val}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    return Parts(str(folder / "data.yaml"), kept, taught)


def state_of(data: str) -> str:
    """Return a digest of a data set that changes with its YAML, images and labels: their names, sizes and times."""
    state, described = hashlib.sha256(), check_data(data, "train")
    for source in filter(None, map(described.get, ("train", "val"))):
        images = sorted(str(path) for path in some_images(source, sys.maxsize))
        for file in filter(os.path.isfile, [str(described["yaml_file"]), *images, *img2label_paths(images)]):
            stat = os.stat(file)
            state.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return state.hexdigest()


def _cut(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images to learn from and those kept aside, the last of each run."""
    fitted: list[Path] = []
    kept: list[Path] = []
    for i in range(RUNS):
        run = images[i * len(images) // RUNS : (i + 1) * len(images) // RUNS]
        last = max(1, round(KEPT * len(run)))
        fitted += run[:-last]
        kept += run[-last:]
    return fitted, kept


def _listed(images: Sequence[Path], file: Path) -> str:
    """Write a list of images as Ultralytics reads it, and return its path."""
    write_text(file, "".join(f"{os.path.abspath(path)}\n" for path in images))
    return str(file.resolve())


def _taught(teacher: YOLO, images: Sequence[Path], folder: Path, name: str, imgsz: int) -> list[Path]:
    """Return links to images, beside which the teacher's confident detections lie as labels."""
    images = evenly_spaced(list(images), MOST_TAUGHT)
    places = [folder / part / name for part in ("images", "labels")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    links = []
    for i, path in enumerate(images):
        link = places[0] / f"{i:06d}{path.suffix}"
        label = places[1] / f"{i:06d}.txt"
        if link.is_symlink() and os.readlink(link) != os.path.abspath(path):
            link.unlink()
            label.unlink(missing_ok=True)
        if not os.path.lexists(link):
            _link(path, link)
        if not label.exists():  # or it is there from a run that was stopped
            found = teacher.predict(str(path), imgsz=imgsz, conf=CONFIDENT, verbose=False, device=teacher.device)
            if not found:
                print(f"{path} cannot be read, it is left out", flush=True)
                link.unlink()
                continue
            write_text(label, _lines(found[0]))
        links.append(link)
    return links


def _link(path: Path, link: Path) -> None:
    """Link to a file, or copy it where there are no links."""
    try:
        os.symlink(os.path.abspath(path), link)
    except OSError:
        shutil.copyfile(path, link)


def _lines(result: Any) -> str:
    """Return detections as the lines of a label file: polygons where there are masks, else boxes, with keypoints."""
    found = result.boxes if result.obb is None else result.obb
    classes = [int(c) for c in found.cls.tolist()]
    shapes = result.boxes.xywhn.tolist() if result.obb is None else result.obb.xyxyxyxyn.clamp(0, 1).flatten(1).tolist()
    if result.masks is not None:
        outlines = [outline.flatten().tolist() for outline in result.masks.xyn]
        shapes = [outline if len(outline) > 5 else box for outline, box in zip(outlines, shapes, strict=True)]
    if result.keypoints is not None and result.keypoints.data.shape[1]:
        points = result.keypoints.xyn.clamp(0, 1)
        if result.keypoints.has_visible:
            seen = 2.0 * (result.keypoints.conf > CONFIDENT)  # 2 is COCO's word for visible, 0 for not there
            points = torch.cat((points, seen[..., None]), 2)
        shapes = [box + own for box, own in zip(shapes, points.flatten(1).tolist(), strict=True)]
    return "".join(f"{c} {' '.join(f'{v:.6f}' for v in shape)}\n" for c, shape in zip(classes, shapes, strict=True))
