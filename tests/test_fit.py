"""Routing fitted to a model that was trained dense: bypasses in closed form, routers by the labels."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import randomise
from torch import nn

import mod_vision
from mod_vision.cli.main import main
from mod_vision.cli.verbs import VERBS
from mod_vision.nn import MoDStage
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import validate
from mod_vision.yolo.train.fit_windows import STEPS


def test_a_calibrated_stage_comes_closer_to_the_dense_one():
    stage = randomise(MoDStage(8, 16, 3)).double().eval()
    x = torch.randn(4, 8, 12, 12, dtype=torch.double)
    with torch.no_grad():
        stage.set_capacity(1.0)
        dense = stage(x)
        stage.set_capacity(0.25)
        nn.init.zeros_(stage.skip.weight)
        nn.init.zeros_(stage.skip.bias)
        residual = (stage(x) - dense).norm()
        returned = stage.calibrate(x)
        fitted = (stage(x) - dense).norm()
    torch.testing.assert_close(returned, dense)
    assert fitted < 0.8 * residual


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid.yaml", "yolo26n-mod-hybrid-seg.yaml", "yolo12n-mod-attention.yaml"]
)
def test_only_what_routing_adds_is_changed(name, tiny_data):
    model = load_model(name)
    before = copy.deepcopy(model.model.state_dict())
    assert mod_vision.fit_routing(model, str(tiny_data), capacity=0.25, imgsz=96) is model
    after = model.model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in changed if "router" not in key and "skip" not in key} == set()
    for prefix, layer in routed_layers(model.model):
        assert layer.capacities[0] == 0.25
        assert f"{prefix}.router.proj.weight" in changed
        if hasattr(layer, "skip") and layer.skip is not None:
            assert any(key.startswith(f"{prefix}.skip") for key in changed)


@pytest.fixture
def squares(tmp_path) -> Path:
    """Photos of noise with a plain square each, which even an untrained network tells apart, but the prior does not."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(16):
        image = rng.integers(90, 160, (160, 160, 3), dtype=np.uint8)
        x, y = rng.integers(0, 112, 2)
        image[y : y + 48, x : x + 48] = 125
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
        (tmp_path / "labels" / f"{i}.txt").write_text(f"0 {(x + 24) / 160} {(y + 24) / 160} 0.3 0.3\n")
    names = {i: f"class{i}" for i in range(80)}
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": names}
    (tmp_path / "squares.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "squares.yaml"


def test_routers_learn_the_objects(squares):
    model = load_model("yolo26n-mod-hybrid.yaml")
    randomise(model.model)  # at the first weights, features hardly differ between tokens
    mod_vision.set_capacity(model, 0.25)

    def gaps() -> list[float]:
        recall = validate(copy.deepcopy(model), data=str(squares), imgsz=160, device="cpu").recall.result().routed
        return [shares["objects"] - shares["rest"] for shares in recall.values()]

    before = gaps()
    mod_vision.fit_routing(model, str(squares), capacity=0.25, imgsz=160)
    for old, new in zip(before, gaps(), strict=True):
        assert new > max(0.0, old) + 0.1


def test_bad_input(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"capacity 1 routes nothing"):
        mod_vision.fit_routing("yolo26n-mod-hybrid.yaml", str(tiny_data), 1.0)
    with pytest.raises(ValueError, match=r"no routed layer"):
        mod_vision.fit_routing("yolo26n.yaml", str(tiny_data), imgsz=64)
    with pytest.raises(FileNotFoundError):
        mod_vision.fit_routing("yolo26n-mod-hybrid.yaml", str(tmp_path / "none.yaml"))


def test_nothing_labelled(squares):
    for file in (squares.parent / "labels").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"none of the \d+ images of `train` has a labelled object, so the routers"):
        mod_vision.fit_routing("yolo26n-mod-hybrid.yaml", str(squares), imgsz=64)


def test_classes_that_the_model_does_not_have(squares):
    file = min((squares.parent / "labels").glob("*.txt"))
    data = yaml.safe_load(squares.read_text())
    squares.write_text(yaml.safe_dump({**data, "names": {i: str(i) for i in range(100)}}))
    file.write_text("99" + file.read_text()[1:])
    with pytest.raises(ValueError, match=r"class 99 is labelled, and the model has 80 classes, from 0 on"):
        mod_vision.fit_routing("yolo26n-mod-hybrid.yaml", str(squares), imgsz=64)


def test_the_command_saves_a_model(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load_model("yolo26n-mod-hybrid.yaml").save("dense.pt")
    assert main(["fit", "model=dense.pt", f"data={tiny_data}", "imgsz=64", "capacity=0.5"]) == 0, capsys.readouterr()
    assert "saved as dense-fit.pt at capacity 0.5" in capsys.readouterr().out
    stage = next(layer for _, layer in routed_layers(load_model("dense-fit.pt").model))
    assert stage.skip.weight.abs().max() > 0


def test_the_verb_trains_routers_of_windows_as_long_as_the_function():
    for convert in (VERBS["convert"], mod_vision.convert):
        assert inspect.signature(convert).parameters["steps"].default == STEPS
