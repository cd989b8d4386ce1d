"""Conversion of trained dense models: every weight stays, capacity 1 gives the dense outputs back."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from conftest import randomise
from helpers import shipped
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.conversion.sensitivity import MAX_SHIFT, MIN_SAVING, Trial, table
from mod_vision.routing import routed_layers
from mod_vision.yolo.blocks import MoDA2C2f, MoDC2PSA
from mod_vision.yolo.run.images import some_images

MODELS = {
    "yolo11n-pose.yaml": {"MoDC2PSA"},
    "yolo12n.yaml": {"MoDA2C2f"},
    "yolo12n-seg.yaml": {"MoDA2C2f"},
    "yolo26n-obb.yaml": {"MoDC2PSA"},
    "yolo26n-cls.yaml": {"MoDC2PSA"},
}


def outputs(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
        return [tensor for child in values for tensor in tensors(child)]

    with torch.inference_mode():
        return tensors(net.eval()(x))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_any_model_and_back(name, photos):
    model = YOLO(name)
    randomise(model.model).eval()
    x = torch.rand(1, 3, 128, 160)
    before = outputs(model.model, x)
    weights = copy.deepcopy(model.model.state_dict())

    routed = mod_vision.convert(model, blocks="all", images=photos[:2], imgsz=128)
    assert {type(layer).__name__ for _, layer in routed_layers(routed.model)} == MODELS[name]
    assert not any(routed_layers(model.model)), "the given model stays dense"
    assert same(outputs(model.model, x), before)
    state = routed.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    assert all(".router." in key for key in state.keys() - weights.keys())

    changed = outputs(routed.model, x)
    assert not same(changed, before)
    mod_vision.set_capacity(routed, 1.0)
    assert same(outputs(routed.model, x), before)


def test_rtdetr(photos):
    model = RTDETR("rtdetr-l.yaml")
    routed = mod_vision.convert(model, blocks="all", images=photos[:1], imgsz=128)
    kinds = {type(layer).__name__ for _, layer in routed_layers(routed.model)}
    assert kinds == {"MoDAIFI"}
    x = torch.rand(1, 3, 128, 128)
    assert not same(outputs(routed.model, x), outputs(model.model, x))
    mod_vision.set_capacity(routed, 1.0)
    assert same(outputs(routed.model, x), outputs(model.model, x))


def test_the_yaml_is_that_of_the_routed_model(photos):
    """Ultralytics rebuilds a model from its YAML when it is trained on."""
    model = YOLO("yolo12n.yaml")
    routed = mod_vision.convert(model, 0.3, [6, 8], "norm", photos[:1], 64)
    assert model.model.yaml["backbone"][6] == [-1, 4, "A2C2f", [512, True, 4]]
    d = routed.model.yaml
    options = {"capacity": 0.3, "router": "norm"}
    assert d["backbone"][6] == [-1, 4, "MoDA2C2f", [512, True, 4, options]]
    assert d["backbone"][8] == [-1, 4, "MoDA2C2f", [1024, True, 1, options]]
    again = DetectionModel(copy.deepcopy(d), verbose=False)
    assert again.state_dict().keys() == routed.model.state_dict().keys()
    assert [type(layer) for _, layer in routed_layers(again)] == [MoDA2C2f, MoDA2C2f]
    again.load_state_dict(routed.model.state_dict())
    x = torch.rand(1, 3, 96, 96)
    assert same(outputs(again, x), outputs(routed.model, x))


def test_trained_dense_saved_loaded_and_trained_on(tiny_data, tmp_path, run_cli):
    """The path of a user: a trained checkpoint, the command, plain yolo train, plain prediction."""
    arguments = {"data": str(tiny_data), "epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}
    dense = YOLO("yolo26n.yaml")
    dense.train(**arguments, project=str(tmp_path), name="dense", optimizer="AdamW", device="cpu", amp=False)
    weights = tmp_path / "dense" / "weights" / "last.pt"

    words = [f"model={weights}", f"data={tiny_data}", "imgsz=64"]
    done = run_cli("mod-vision", "convert", *words, "blocks=10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "routed rows 10" in done.stdout
    assert "yolo train model=last-mod.pt" in done.stdout
    before, after = (YOLO(path).model.state_dict() for path in (weights, tmp_path / "last-mod.pt"))
    assert all(torch.equal(after[key], value) for key, value in before.items())

    keys = [f"{key}={value}" for key, value in arguments.items()]
    trained = run_cli(
        "yolo", "train", "model=last-mod.pt", *keys, f"project={tmp_path}", "name=routed", "device=cpu", "amp=False",
        "lr0=0", "warmup_bias_lr=0", "optimizer=SGD", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "guide" in (tmp_path / "routed" / "results.csv").read_text()
    best = YOLO(tmp_path / "routed" / "weights" / "last.pt")
    assert [type(layer) for _, layer in routed_layers(best.model)] == [MoDC2PSA]
    start, end = YOLO(tmp_path / "last-mod.pt").model, best.model
    for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True):
        torch.testing.assert_close(b, a, msg=f"{name} did not start from the converted weights", rtol=0, atol=2e-3)

    again = run_cli("mod-vision", "convert", *words, f"out={weights}", "blocks=10", cwd=tmp_path)
    assert again.returncode == 1
    assert "is the model it is made from; choose another name" in again.stderr


def test_a_converted_object_trains_from_its_weights(tiny_data, tmp_path, photos):
    routed = mod_vision.convert(YOLO("yolo26n.yaml"), blocks=[10], images=photos[:1], imgsz=64)
    before = copy.deepcopy(routed.model.state_dict())
    routed.train(
        data=str(tiny_data), epochs=1, imgsz=64, batch=8, workers=0, plots=False, project=str(tmp_path), name="run",
        lr0=0.0, warmup_bias_lr=0.0, optimizer="SGD", device="cpu", amp=False, val=False,
    )  # fmt: skip
    after = YOLO(tmp_path / "run" / "weights" / "last.pt").model
    names = [name for name, _ in after.named_parameters() if not name.startswith("model.23.")]
    assert len(names) > 100
    for name in names:  # the head's rows are sorted anew by class name
        torch.testing.assert_close(after.state_dict()[name], before[name], rtol=0, atol=2e-3, msg=name)


def test_auto_prints_what_it_decides_from(photos, capsys):
    """At this size nothing is worth it, and every row is named with its reason."""
    with pytest.raises(ValueError, match="no layer of this model is worth routing at 128 px: row 10 saves less than "):
        mod_vision.convert(YOLO("yolo26n.yaml"), images=photos[:2], imgsz=128)
    printed = capsys.readouterr().out
    assert f"saves less than {MIN_SAVING:.0%}" in printed


def test_verdicts():
    assert Trial(4, "C3k2", 9.0, 5.0, 0.04, 0.2).verdict == "routed"
    assert Trial(4, "C3k2", 9.0, 8.9, 0.001, 0.2).verdict == "saves less than 1%"
    assert Trial(4, "C3k2", 9.0, 5.0, 0.04, MAX_SHIFT + 0.01).verdict == "shifts more than 30%"
    text = table([Trial(4, "C3k2", 9.0, 5.0, 0.04, 0.2), Trial(0, "Conv", reason="reads pixels")])
    assert text.splitlines()[1].split() == ["0", "Conv", "reads", "pixels"]
    assert text.splitlines()[2].split() == ["4", "C3k2", "9.0", "ms", "5.0", "ms", "4.0%", "20.0%", "routed"]


@pytest.mark.parametrize("blocks", [[0, 99], ["model.4"], [], [9], True, "some", {"a": 1}, [{"a": 1}], [[4]]])
def test_rows_that_cannot_be_routed(blocks, photos):
    with pytest.raises(ValueError, match=r"blocks must be auto, all, or rows that have a routed form, 10 \(C2PSA\)"):
        mod_vision.convert(YOLO("yolo26n.yaml"), blocks=blocks, images=photos[:1], imgsz=64)


def test_a_named_row_that_refuses(photos):
    with pytest.raises(ValueError, match=r"^layer 11, A2C2f: this A2C2f has convolutions instead of attention"):
        mod_vision.convert(YOLO("yolo12n.yaml"), blocks=[11], images=photos[:1], imgsz=64)


def test_nothing_to_route(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "nc: 2\nbackbone: [[-1, 1, nn.Conv2d, [3, 8, 3, 2, 1]]]\nhead: [[-1, 1, Classify, [nc]]]\n"
    )
    with pytest.raises(ValueError, match="has nothing to route"):
        mod_vision.convert(YOLO(tmp_path / "tiny.yaml", task="classify"), imgsz=64)


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolov9t.yaml"])
def test_models_without_attention(name):
    told = "convert routes attention: YOLO11 and YOLO26 have C2PSA, YOLO12 has A2C2f, RT-DETR has AIFI, and YOLOv8"
    with pytest.raises(ValueError, match=f"^this model has nothing to route, since {told}"):
        mod_vision.convert(YOLO(name), imgsz=64)


def test_a_routed_model_can_be_routed_further(photos, tmp_path):
    """What was routed before keeps its capacity, and the model its losses, also when it is built again."""
    d = shipped("yolo12-mod-attention.yaml")
    d["backbone"][6][2] = "A2C2f"
    (tmp_path / "yolo12n-half.yaml").write_text(yaml.safe_dump(d))
    first = YOLO(tmp_path / "yolo12n-half.yaml")
    first.model.yaml["mod"] = {"capacity": 0.5, "loss": {"guide": 0.25}}
    second = mod_vision.convert(first, 0.25, blocks=[6], images=photos[:1], imgsz=64)
    expected = {"model.6": (0.25,), "model.8": (0.5,)}
    again = DetectionModel(copy.deepcopy(second.model.yaml), verbose=False)
    for model in (second.model, again):
        assert {name: layer.capacities for name, layer in routed_layers(model)} == expected
    assert second.model.yaml["mod"] == {"capacity": 0.5, "loss": {"guide": 0.25}}


@pytest.mark.parametrize("value", [0, 1.5, "half"])
def test_bad_capacity(value):
    with pytest.raises(ValueError, match=r"capacity must be a number in \(0, 1\]"):
        mod_vision.convert(YOLO("yolo26n.yaml"), value)


def test_an_unknown_router(capsys):
    with pytest.raises(ValueError, match=r"^convert: unknown router 'foo', choose one of conv, "):
        mod_vision.convert(YOLO("yolo11n.yaml"), router="foo")
    assert not capsys.readouterr().out, "before anything is measured"


def test_fused_and_exported_models(tmp_path):
    model = YOLO("yolo26n.yaml")
    model.model.eval().fuse(verbose=False)
    with pytest.raises(ValueError, match=r"the model is fused .*; load the checkpoint again"):
        mod_vision.convert(model)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"model\.onnx is an exported one; convert the checkpoint"):
        mod_vision.convert(YOLO(tmp_path / "model.onnx", task="detect"))


def test_images_of_any_source(photos, tiny_data, tmp_path):
    folder = photos[0].parent
    assert some_images(folder, 3) == [photos[i * len(photos) // 3] for i in range(3)]
    assert some_images([str(p) for p in photos[:2]], 8) == sorted(photos[:2])
    assert [p.parent.name for p in some_images(tiny_data, 4)] == ["train"] * 4
    with pytest.raises(FileNotFoundError):
        some_images(tmp_path / "nowhere", 2)
    with pytest.raises(FileNotFoundError):
        some_images(tmp_path / "nowhere.yaml", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=yolo26n.yaml"], "convert takes a trained checkpoint"),
        (["model=missing.pt"], "checkpoint missing.pt does not exist"),
        ([], "mod-vision convert needs model=..."),
    ],
)
def test_command_errors(words, message, capsys, tmp_path, monkeypatch):
    from mod_vision.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words]) == 1
    assert message in capsys.readouterr().err
