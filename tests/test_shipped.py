"""The small checkpoint that ships: found by its bare name, light, and looking at the objects."""

from __future__ import annotations

import os
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

NAME = "yolo26n-mod-hybrid-seg.pt"
PHOTO = min((OPEN / "images" / "val").glob("*.jpg"))


def test_it_is_small_and_half():
    assert find_shipped(NAME).stat().st_size < 10_000_000
    weights = list(torch.load(find_shipped(NAME), weights_only=False)["model"].parameters())
    assert {t.dtype for t in weights} == {torch.float16}


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
