"""What many tests share: a small data set of embedded photos, numbers, weights, and the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from browser import chromium as chromium  # fixtures, for all tests
from browser import visit as visit
from detectors import detector as detector
from detectors import frames as frames
from detectors import segmenter as segmenter
from detectors import with_nms as with_nms
from drone_images import dense as dense
from drone_images import drones as drones
from frames import camera as camera
from frames import scene as scene
from helpers import randomise as randomise
from hypothesis import settings
from hypothesis import strategies as st
from local_page import explorer as explorer
from local_page import page_server as page_server
from reports import evil_data as evil_data
from window_models import square_photo as square_photo
from window_models import windows_model as windows_model

from mod_vision.resources import resource_dir
from mod_vision.yolo.run.images import read_image

OPEN = resource_dir("assets") / "open"
FEW = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 2**16)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tensors too small to share: a second thread only waits, for long where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def normal(seed: int, *shape: int, **kwargs) -> torch.Tensor:
    """Return the same normal numbers for a seed, whatever was drawn before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted((OPEN / "images" / "val").glob("*.jpg"))


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    """The pixels of the first."""
    return read_image(photos[0])


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Eight photos to train and four to validate, with YOLO labels and COCO JSON."""
    root = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for photo in sorted((OPEN / "images" / split).glob("*.jpg"))[:count]:
            shutil.copy(photo, root / "images" / split)
            shutil.copy(OPEN / "labels" / split / f"{photo.stem}.txt", root / "labels" / split)
    shutil.copytree(OPEN / "annotations", root / "annotations")
    data = yaml.safe_load((OPEN / "mod-open.yaml").read_text())
    (root / "tiny.yaml").write_text(yaml.safe_dump({**data, "path": str(root)}, sort_keys=False))
    return root / "tiny.yaml"


@pytest.fixture
def scenes(tmp_path, photos) -> Path:
    """A data set of 24 + 4 photos."""
    names = {i: f"class{i}" for i in range(80)}
    train = sorted(photos[0].parents[1].joinpath("train").glob("*.jpg"))[:24]
    for split, files in (("train", train), ("val", photos[:4])):
        (tmp_path / f"{split}.txt").write_text("".join(f"{file}\n" for file in files))
    data = {"path": str(tmp_path), "train": "train.txt", "val": "val.txt", "names": names}
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "scenes.yaml"


@pytest.fixture(scope="session")
def run_cli(tmp_path_factory):
    """Run a console script of this environment in a fresh process and return what it did."""
    config = tmp_path_factory.mktemp("config")

    def run(name: str, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        script = Path(sys.executable).with_name(name)
        env = {**os.environ, "YOLO_CONFIG_DIR": str(config), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run([script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)

    return run
