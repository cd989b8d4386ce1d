"""A folder of a data set by others runs no code, whichever file of it is read."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import Evil
from PIL import EpsImagePlugin, Image
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.world.train import WorldTrainer
from ultralytics.utils import checks
from ultralytics.utils.patches import imread

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.trust import restricted, untrusted_data
from mod_vision.yolo.run.images import read_image

SHIPPED = "yolo26n-mod-hybrid-seg.pt"
EMBEDDINGS = "text_embeddings_clip_ViT-B_32.pt"


def _folder(root: Path) -> tuple[Any, list[Path]]:
    return "images/val", [root / "labels" / "val.cache"]


def _list(root: Path) -> tuple[Any, list[Path]]:
    """A list of images, and caches beside each folder that it could mean."""
    files = sorted((root / "images" / "val").iterdir())
    (root / "val.txt").write_text("\n".join(f"./images/val/{file.name}" for file in files))
    return "val.txt", [root / "labels" / "val.cache", root / "val.cache", root / "labels.cache"]


def _folders(root: Path) -> tuple[Any, list[Path]]:
    return ["images/val", "images/train"], [root / "labels" / "val.cache", root / "labels" / "train.cache"]


def _beside(root: Path) -> tuple[Any, list[Path]]:
    """Labels lie beside the images if no folder is called images."""
    (root / "images" / "val").rename(root / "pictures")
    for label in (root / "labels" / "val").glob("*.txt"):
        label.rename(root / "pictures" / label.name)
    return "pictures", [root / "pictures.cache"]


def _link(root: Path) -> tuple[Any, list[Path]]:
    (root / "labels" / "val.cache").symlink_to(root / "elsewhere")
    return "images/val", [root / "elsewhere"]


LAYOUTS: dict[str, Callable[[Path], tuple[Any, list[Path]]]] = {
    "folder": _folder,
    "list": _list,
    "folders": _folders,
    "beside": _beside,
    "link": _link,
}


@pytest.fixture
def make_evil(tiny_data, tmp_path) -> Callable[[str], Path]:
    """Write a data set with caches that make a folder when they are unpickled, wherever Ultralytics looks for one."""

    def make(layout: str) -> Path:
        root = tmp_path / "set"
        shutil.copytree(tiny_data.parent, root)
        for cache in root.rglob("*.cache"):
            cache.unlink()
        split, caches = LAYOUTS[layout](root)
        for file in (*caches, *(image.with_suffix(".npy") for image in root.rglob("*.jpg"))):
            with file.open("wb") as stream:
                np.save(stream, np.array(Evil(tmp_path / "owned"), dtype=object))
        torch.save(Evil(tmp_path / "owned"), root / "images" / EMBEDDINGS)
        data = yaml.safe_load(tiny_data.read_text())
        data.pop("annotations")
        (root / "set.yaml").write_text(yaml.safe_dump(data | {"path": str(root), "train": split, "val": split}))
        return root / "set.yaml"

    return make


COMMANDS = {
    "val": ["val", "out=out"],
    "compare": ["val", "out=out"],
    "fit": ["fit", "out=fit.pt"],
    "report": ["report", "capacity=0.5", "images=1", "out=r.html"],
    "export": ["export", "format=onnx", "quantize=8", "images=2"],
}


def _run(command: str, data: Path) -> int:
    shutil.copy(find_shipped(SHIPPED), "own.pt")
    model = f"models={SHIPPED},own.pt" if command == "compare" else "model=own.pt"
    threads = [] if command == "fit" else ["threads=1"]
    return main([*COMMANDS[command], model, f"data={data}", "imgsz=64", *threads])


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_data_set_holds(make_evil, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    code = _run(command, make_evil("folder"))
    assert code == 0, capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_no_training_of_ours_runs_it(make_evil, tmp_path):
    """As the demo and sweeps train."""
    words = {"epochs": 1, "imgsz": 32, "batch": 8, "workers": 0, "plots": False, "project": str(tmp_path / "runs")}
    with restricted():
        load_model(SHIPPED).train(data=str(make_evil("folder")), **words)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_cache_is_read_wherever_it_lies(make_evil, tmp_path, layout):
    """In all the forms that a split can have."""
    data = make_evil(layout)
    with restricted():
        _open(data)
    assert not (tmp_path / "owned").exists()
    _open(data)
    assert (tmp_path / "owned").exists(), "plain Ultralytics is as it was, and looks there"


def test_no_cache_is_written_where_a_link_leads(tiny_data, tmp_path):
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    cache = tmp_path / "set" / "labels" / "val.cache"
    cache.unlink(missing_ok=True)
    cache.symlink_to(tmp_path / "elsewhere")
    data = tmp_path / "set" / "tiny.yaml"
    data.write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | {"path": str(tmp_path / "set")}))
    with restricted():
        _open(data)
    assert not (tmp_path / "elsewhere").exists()
    _open(data)
    assert (tmp_path / "elsewhere").exists(), "plain Ultralytics is as it was"


def test_embeddings_beside_the_images_run_nothing(make_evil, tmp_path):
    """YOLO-World and YOLOE keep those of class names there."""
    data = make_evil("folder")
    trainer = SimpleNamespace(device="cpu")
    with restricted(), pytest.raises(pickle.UnpicklingError, match="mkdir"):
        WorldTrainer.generate_text_embeddings(trainer, ["a"], 1, data.parent / "images")
    assert not (tmp_path / "owned").exists()
    torch.save({"a": torch.ones(2)}, data.parent / "images" / EMBEDDINGS)
    with restricted():
        assert WorldTrainer.generate_text_embeddings(trainer, ["a"], 1, data.parent / "images")["a"].sum() == 2


def test_workers_of_a_training_read_none(make_evil, tmp_path):
    """Those of several GPUs are processes of their own, in which nothing was called that is ours."""
    code = "import sys; from test_data_folder import _open; from pathlib import Path; _open(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(make_evil("folder"))]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with untrusted_data():
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, timeout=120)
    assert not (tmp_path / "owned").exists()
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "owned").exists(), "so it would have been"


def test_a_damaged_image_installs_nothing(tiny_data, tmp_path, monkeypatch):
    """Ultralytics installs a decoder for what Pillow cannot identify."""
    started = []
    for name in ("run", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *args, **_: started.append(args))
    for name in ("AUTOINSTALL", "ONLINE"):
        monkeypatch.setattr(checks, name, True)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    (tmp_path / "set" / "images" / "val" / "damaged.jpg").write_bytes(b"no image" * 9)
    data = tmp_path / "set" / "tiny.yaml"
    data.write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | {"path": str(tmp_path / "set")}))
    for guarded in (restricted, untrusted_data):
        with guarded():
            _open(data)
    assert not started
    _open(data)
    assert started, "plain Ultralytics is as it was"


def test_no_image_runs_ghostscript(tmp_path, monkeypatch):
    """Pillow does for PostScript, whatever the file is called; a program of that name is found in the PATH."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\nmkdir -p {tmp_path / 'owned'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setattr(EpsImagePlugin, "gs_windows_binary", None)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.avif").write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.avif is not an image that can be read"):
        read_image(tmp_path / "a.avif")
    assert not (tmp_path / "owned").exists()
    imread(str(tmp_path / "a.avif"))
    assert (tmp_path / "owned").exists(), "so it would have been"
    picture = Image.new("RGB", (20, 10), (255, 0, 0))
    picture.save(tmp_path / "b.avif")
    assert read_image(tmp_path / "b.avif").shape == (10, 20, 3)


def test_a_trusted_cache_is_read(make_evil, tmp_path, monkeypatch):
    monkeypatch.setenv("MOD_VISION_TRUST", "1")
    with restricted():
        _open(make_evil("folder"))
    assert (tmp_path / "owned").exists()


def _open(data: Path) -> None:
    """Open the split of a data set as Ultralytics does."""
    found = check_det_dataset(str(data))
    build_yolo_dataset(get_cfg(overrides={"task": "detect"}), found["val"], 1, found, mode="val")
