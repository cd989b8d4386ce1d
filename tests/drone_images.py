"""Drone images to convert a model by: the model, the data set, and a zone that is a part of the pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from ultralytics import YOLO

from mod_vision.conversion.windowed import without_windows
from mod_vision.resources import resource_dir
from mod_vision.yolo.model.loading import load_model

BOX = [[0.25, 0.25], [0.75, 0.25], [0.75, 1.0], [0.25, 1.0]]
HITUAV = resource_dir("assets") / "hituav"


def in_box(x: float, y: float) -> bool:
    """Whether a point, as shares of the picture, lies in BOX."""
    return 0.25 <= x < 0.75 and y >= 0.25


@pytest.fixture(scope="module")
def dense() -> YOLO:
    return without_windows(load_model("yolo26n-mod-hituav.pt"))


@pytest.fixture
def drones(tmp_path) -> Path:
    """A data set of 24 + 6 drone images."""
    for split, count in (("train", 24), ("val", 6)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for image in sorted((HITUAV / "images" / split).glob("*.jpg"))[::4][:count]:
            shutil.copy(image, tmp_path / "images" / split)
            shutil.copy(HITUAV / "labels" / split / f"{image.stem}.txt", tmp_path / "labels" / split)
    data = yaml.safe_load((HITUAV / "mod-hituav.yaml").read_text()) | {"path": str(tmp_path)}
    (tmp_path / "drones.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "drones.yaml"


def objects_of(data: Path) -> dict[str, np.ndarray]:
    """The lines of the label files of `val` by the names of the images."""
    files = sorted((data.parent / "labels" / "val").glob("*.txt"))
    return {f"{file.stem}.jpg": np.array(file.read_text().split(), float).reshape(-1, 5) for file in files}
