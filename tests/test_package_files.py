"""Whatever is run, nothing is written into the installed package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OPEN

import mod_vision
from mod_vision.resources import find_shipped, resource_dir

SHIPPED = "yolo26n-mod-hybrid-seg.pt"
PLAIN = """
from ultralytics import YOLO

where = {"data": "mod-open.yaml", "imgsz": 32, "device": "cpu", "workers": 0, "plots": False, "cache": "disk"}
YOLO("yolo26n-mod-hybrid-seg.pt").train(**where, epochs=1, batch=16, fraction=0.2, project="runs")
YOLO("yolo26n-mod-hybrid-seg.pt").val(**where, project="runs")
YOLO("yolo26n-mod-hybrid-seg.pt").val(**where | {"data": "mine.yaml"}, project="runs")
print(YOLO("yolo26n-mod-hybrid-seg.pt").export(format="torchscript", imgsz=64))
"""
VERBS = """
from mod_vision.cli.main import main
from mod_vision.resources import find_shipped

words = ["model=yolo26n-mod-hybrid-seg.pt", "data=mod-open.yaml", "imgsz=64"]
shipped = str(find_shipped("yolo26n-mod-hybrid-seg.pt"))
assert main(["val", *words, "out=val"]) == 0
assert main(["fit", *words]) == 0
assert main(["fit", "thresholds=True", *words]) == 0
assert main(["report", *words, "images=1", "capacity=0.5", "evaluate=False"]) == 0
assert main(["heatmap", "source=" + shipped.replace("yolo26n-mod-hybrid-seg.pt", "open/images/val"), "imgsz=64"]) == 0
assert main(["export", f"model={shipped}", "format=torchscript", "imgsz=64", "images=1", "threads=1"]) == 0
"""


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder with the package as a wheel installs it."""
    package = tmp_path / "site" / "mod_vision"
    shutil.copytree(Path(mod_vision.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, name in ((resource_dir("cfg"), "cfg"), (OPEN, "assets/open")):
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("*.cache", "*.npy"), dirs_exist_ok=True)
    shutil.copy(find_shipped(SHIPPED), package / "assets")
    return package.parent


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("code", [PLAIN, VERBS], ids=["plain Ultralytics", "verbs of mod-vision"])
def test_nothing_is_written_into_the_package(site, tmp_path, code):
    cwd, before = tmp_path / "work", hashes(site)
    cwd.mkdir()
    images = f"{site}/mod_vision/assets/open/images/val"
    (cwd / "mine.yaml").write_text(f"train: {images}\nval: {images}\nnames: {[str(i) for i in range(80)]}\n")
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    shown = f"import mod_vision; print(mod_vision.__file__)\n{code}"
    done = subprocess.run([sys.executable, "-c", shown], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(str(site)), "the copy was run"
    assert hashes(site) == before
    assert (cwd / SHIPPED.replace(".pt", ".torchscript")).is_file(), "the export lies in the working folder"


def test_the_photos_of_others_are_cached_as_before(tiny_data, tmp_path):
    """Labels and images, also after those of the package were read."""
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    (tmp_path / "data" / "labels" / "val.cache").unlink(missing_ok=True)
    data = tmp_path / "data" / "tiny.yaml"
    data.write_text(data.read_text().replace(str(tiny_data.parent), str(tmp_path / "data")))
    code = f"""
from ultralytics import YOLO

for data in ("mod-open.yaml", {str(data)!r}):
    YOLO({SHIPPED!r}).val(data=data, imgsz=32, device="cpu", workers=0, plots=False, cache="disk", project="runs")
"""
    env = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "data" / "labels" / "val.cache").is_file()
    assert len(list((tmp_path / "data" / "images" / "val").glob("*.npy"))) == 4
    assert not list(OPEN.rglob("*.npy"))
