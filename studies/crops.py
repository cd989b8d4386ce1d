"""Crops around the objects of a data set, to train on in minutes what shall run on windows.

85 % are around objects, of rare classes more often than their number, and 15 % anywhere.
"""

import random
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml
from ultralytics.data.utils import img2label_paths

from mod_vision.cli.main import run_tool
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.images import some_images

AROUND, SHOWN = 0.85, 0.35  # share of crops around an object; share of an object that must be in a crop to be labelled
VALIDATED = 64  # crops that stand for a validation split, which Ultralytics wants


def crops(data: str, out: str, side: int = 160, count: int = 12000, enlarge: float = 1.0) -> None:
    """Write crops of the training split as a data set with the same classes.

    Args:
        data: Data YAML with boxes.
        out: Folder for images, labels and `data.yaml`.
        side: Side of a crop in px.
        count: Number of crops.
        enlarge: Factor by which crops are written larger, for a model that shall run on enlarged images.
    """
    rng, described, folder = random.Random(0), check_data(data, "train"), Path(out)
    images = sorted(some_images(split_images(described, "train"), sys.maxsize))
    labels = {path: _labels(path) for path in images}
    objects = [(path, i) for path in images for i in range(len(labels[path]))]
    often = np.bincount([int(labels[path][i][0]) for path, i in objects], minlength=len(described["names"])) + 1.0
    weights = [often[int(labels[path][i][0])] ** -0.5 for path, i in objects]
    around = int(count * AROUND)
    picked: list[tuple[Path, int | None]] = [*rng.choices(objects, weights, k=around)]
    picked += [(rng.choice(images), None) for _ in range(count - around)]
    by_image: dict[Path, list[int | None]] = {}
    for path, i in picked:
        by_image.setdefault(path, []).append(i)
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True, exist_ok=True)
    number = 0
    for path, chosen in by_image.items():
        photo = cv2.imread(str(path))
        assert photo is not None
        for i in chosen:
            _write(folder, number, photo, labels[path], i, side, rng, enlarge)
            number += 1
    listed = [folder.resolve() / f"images/train/{n * (count // VALIDATED):05d}.jpg" for n in range(VALIDATED)]
    (folder / "val.txt").write_text("\n".join(map(str, listed)) + "\n")
    text = {"path": str(folder.resolve()), "train": "images/train", "val": "val.txt", "names": described["names"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(text))
    print(f"{number} crops in {folder}")


def _labels(path: Path) -> np.ndarray:
    """Return class and box (M, 5) of the objects of an image."""
    file = Path(img2label_paths([str(path)])[0])
    rows = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
    return np.array(rows, float).reshape(-1, 5)


def _write(
    folder: Path,
    number: int,
    photo: np.ndarray,
    labels: np.ndarray,
    around: int | None,
    side: int,
    rng: random.Random,
    enlarge: float,
) -> None:
    """Write a crop and its labels."""
    height, width = photo.shape[:2]
    boxes = labels[:, 1:] * [width, height, width, height]
    if around is None:
        x, y = rng.randint(0, width - side), rng.randint(0, height - side)
    else:
        x, y = (int(boxes[around, axis] - rng.uniform(0.1, 0.9) * side) for axis in (0, 1))
        x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
    low = np.maximum(boxes[:, :2] - boxes[:, 2:] / 2, (x, y))
    high = np.minimum(boxes[:, :2] + boxes[:, 2:] / 2, (x + side, y + side))
    inside = (high > low).all(1) & ((high - low).prod(1) >= SHOWN * boxes[:, 2:].prod(1))
    rows = np.concatenate((labels[:, :1], ((low + high) / 2 - (x, y)) / side, (high - low) / side), 1)[inside]
    lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in rows]
    (folder / f"labels/train/{number:05d}.txt").write_text("\n".join(lines))
    crop = cv2.resize(photo[y : y + side, x : x + side], None, fx=enlarge, fy=enlarge)
    cv2.imwrite(str(folder / f"images/train/{number:05d}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 95])


if __name__ == "__main__":
    sys.exit(run_tool(crops, str(__doc__)))
