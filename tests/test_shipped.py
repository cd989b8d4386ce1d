"""The checkpoints that ship: found by their bare names, light, and looking at the objects."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import OPEN
from ultralytics import YOLO

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import validate

NAME, WINDOWS = "yolo26n-mod-hybrid-seg.pt", "yolo26n-mod-hituav.pt"
PHOTO = min((OPEN / "images" / "val").glob("*.jpg"))
DRONE = min((OPEN.parent / "hituav" / "images" / "val").glob("*.jpg"))


@pytest.mark.parametrize(("name", "megabytes"), [(NAME, 10), (WINDOWS, 7)])
def test_it_is_small_and_half(name, megabytes):
    assert find_shipped(name).stat().st_size < megabytes * 1e6
    weights = list(torch.load(find_shipped(name), weights_only=False)["model"].parameters())
    assert {t.dtype for t in weights} == {torch.float16}


def test_the_drone_images_are_small():
    folder = DRONE.parents[2]
    assert sum(file.stat().st_size for file in folder.rglob("*.jpg")) < 6e6
    assert "CC BY 4.0" in (folder / "CREDITS.md").read_text()


def test_windows_lose_few_objects():
    found = validate(load_model(WINDOWS), data="mod-hituav.yaml", imgsz=960, device="cpu", batch=1)
    figures = found.lost.result()
    assert figures["lost"]["router"]["all"] < 0.1
    assert figures["lost"]["random"]["all"] > 3 * figures["lost"]["router"]["all"]
    assert figures["computed_share"] < 0.6


def test_plain_yolo_runs_the_windows_in_a_new_process(tmp_path):
    code = f"from ultralytics import YOLO; print('shape', YOLO({WINDOWS!r}).predict({str(DRONE)!r})[0].windows.shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"shape \([1-9]\d*, 4\)", done.stdout), done.stderr[-2000:]


@pytest.mark.parametrize("safe", ["0", "1"])
def test_plain_yolo_finds_it_in_a_new_process(tmp_path, safe):
    code = f"from ultralytics import YOLO; print('task', YOLO({NAME!r}).predict({str(PHOTO)!r}, imgsz=160)[0].masks)"
    env = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "task" in done.stdout, done.stderr[-2000:]


def test_the_users_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    YOLO("yolo26n.yaml").save(NAME)
    assert not any(routed_layers(YOLO(NAME).model))
    assert not any(routed_layers(load_model(NAME).model))


def test_it_looks_at_objects():
    recall = validate(load_model(NAME), data="mod-open.yaml", imgsz=320, device="cpu").recall.result()
    assert recall.random.keys() == {"model.6", "model.8"}
    for layer, shares in recall.routed.items():
        assert shares["objects"] > recall.random[layer] + 0.1
        assert shares["rest"] < recall.random[layer] - 0.1


def test_heatmaps_need_no_other_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["heatmap", f"source={PHOTO}", "imgsz=160", "out=maps"]) == 0, capsys.readouterr()
    assert list((tmp_path / "maps").glob("*.*"))
