"""One way to set the capacity of any routed layer: by number, over the depth, by layer."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from helpers import HostWaits, shipped
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model


def capacities(model) -> dict[str, tuple[float, ...]]:
    return {name: layer.capacities for name, layer in routed_layers(model)}


@functools.cache
def attention_model() -> DetectionModel:
    """YOLO11 with routed attention in three rows."""
    d = shipped("yolo11-mod-attention.yaml") | {"scale": "n"}
    for row in (6, 8):
        d["backbone"][row][2:] = ["MoDC2PSA", d["backbone"][row][3][:1]]
    return DetectionModel(d, verbose=False)


def rebuilt(model) -> DetectionModel:
    """Build the model anew from its YAML, as training on does."""
    return DetectionModel(copy.deepcopy(model.yaml), verbose=False)


def test_it_survives_a_rebuild():
    d = copy.deepcopy(YOLO("yolo26n-mod-hybrid.yaml").model.yaml)
    d["backbone"][6][3] = [512, 0.75, 2, {"router": "norm"}]
    d["backbone"][8][3] = [1024, {"capacity": 0.9}]
    model = DetectionModel(d, verbose=False)
    for capacity in (0.25, [0.5, 0.25], {6: 0.75}, {"model.6": [0.9, 0.3], "8": 1.0}):
        mod_vision.set_capacity(model, capacity)
        again = rebuilt(model)
        assert capacities(again) == capacities(model)
        assert again.model[6].blocks[0].attn.num_heads == 2
        assert type(again.model[6].router).__name__ == "NormRouter"
    assert model.model[8].dense
    assert model.yaml["mod"]["loss"] == {"guide": 0.5}


@pytest.mark.parametrize("value", [0, 1.5, "half", {10: 0}])
def test_bad_values_change_nothing(value):
    yolo = YOLO("yolo11n-mod-attention.yaml")
    mod_vision.set_capacity(yolo, 0.25)
    before = copy.deepcopy(yolo.model.yaml)
    with pytest.raises(ValueError, match=r"^model\.10 \(MoDC2PSA\): capacity must be a number in \(0, 1\], got "):
        mod_vision.set_capacity(yolo, value)
    assert capacities(yolo.model) == {"model.10": (0.25,)}
    assert yolo.model.yaml == before


@pytest.mark.parametrize("key", [7, "model.7", "model", "model.2.m", "6 "])
def test_layer_that_does_not_exist(key):
    model = YOLO("yolo26n-mod-hybrid.yaml").model
    before = capacities(model)
    wanted = {6: 0.1, key: 0.3}
    if key == "model":  # a module that holds all of them
        mod_vision.set_capacity(model, wanted)
        assert set(capacities(model).values()) == {(0.3,) * 6, (0.3,) * 4}
        return
    with pytest.raises(ValueError, match=r"no routed layer 'model\.(7|2\.m)'|no routed layer '6 '") as error:
        mod_vision.set_capacity(model, wanted)
    assert "there are model.6, model.8." in str(error.value)
    assert capacities(model) == before


def test_the_next_prediction_has_it():
    model = YOLO("yolo26n-mod-hybrid.yaml")
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    model.predict(image, imgsz=64, verbose=False)
    mod_vision.set_capacity(model, (0.5, 0.25))
    assert model.predictor is None
    assert rebuilt(model.model).model[6].capacities[-1] == 0.25


def test_the_next_prediction_has_what_the_torch_model_was_given():
    """Ultralytics predicts with a copy, which it makes once; other copies are left alone."""
    model = load_model("yolo26n-mod-hybrid-seg.pt")
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)

    def predict():
        model.predict(image, imgsz=96, conf=0.0, verbose=False)
        net = model.predictor.model.model
        return net, [layer.plan and layer.plan.indices.shape[1] for _, layer in routed_layers(net)]

    net, routed = predict()
    assert routed == [18, 5]
    twin = copy.deepcopy(model.model)
    for capacity, wanted in ((0.25, [9, 3]), ({"model.6": 1.0}, [None, 3]), (1.0, [None, None]), (0.5, [18, 5])):
        mod_vision.set_capacity(model.model, capacity)
        assert predict() == (net, wanted), "the same copy"
    for _, layer in routed_layers(model.model):
        layer.set_threshold(1e9)
    assert predict()[1] == [2, 1], "one token in 16 at least"
    mod_vision.set_capacity(net, 1.0)
    assert predict()[1] == [None, None], "set by hand, and the model was not changed since"
    assert set().union(*capacities(twin).values()) == {0.5}
    mod_vision.set_capacity(twin, 0.3)
    mod_vision.set_capacity(model.model, 0.5)
    assert predict()[1] == [18, 5]


def test_a_prediction_with_a_copy_of_a_copy_follows_the_one_that_is_left():
    """Ultralytics copies once more where a model was loaded in inference mode."""
    with torch.inference_mode():
        model = load_model("yolo26n-mod-hybrid.yaml")
        for parameter in model.model.parameters():
            parameter.data = parameter.data.clone()
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    model.predict(image, imgsz=64, verbose=False)
    mod_vision.set_capacity(model.model, 0.25)
    model.predict(image, imgsz=64, verbose=False)
    assert [layer.capacities[0] for _, layer in routed_layers(model.predictor.model.model)] == [0.25, 0.25]


def test_it_survives_a_checkpoint(tmp_path):
    model = YOLO("yolo12n-mod-attention.yaml")
    mod_vision.set_capacity(model, {6: 0.3, "model.8": 1.0})
    model.save(tmp_path / "model.pt")
    again = YOLO(tmp_path / "model.pt")
    assert capacities(again.model) == capacities(model.model)
    mod_vision.set_capacity(again, {6: 0.6})
    assert capacities(again.model)["model.6"] == (0.6,)
    assert capacities(rebuilt(again.model)) == capacities(again.model)


@given(st.dictionaries(st.sampled_from([6, 8, 10]), st.floats(0.01, 1.0)))
@settings(max_examples=20, deadline=None)
def test_any_mapping(wanted):
    model = attention_model()
    mod_vision.set_capacity(model, 0.5)
    mod_vision.set_capacity(model, wanted)
    expected = {name: (wanted.get(int(name.split(".")[1]), 0.5),) for name in capacities(model)}
    assert capacities(model) == expected
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 64, 64))
    for name, layer in routed_layers(model):
        if layer.dense:
            assert layer.plan is None
        else:
            n = layer.plan.logits.shape[1]
            assert abs(layer.plan.indices.shape[1] - expected[name][0] * n) < 1.001


def test_an_exported_model_has_a_fixed_capacity(tmp_path):
    (tmp_path / "model.onnx").touch()
    model = YOLO(tmp_path / "model.onnx", task="detect")
    with pytest.raises(ValueError, match=r"model\.onnx is an exported one, its capacity is fixed"):
        mod_vision.set_capacity(model, 0.5)


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid", "yolo11n-mod-attention", "yolo12n-mod-attention", "yolo26-mod-vit-t"]
)
def test_compiles_without_breaks_and_without_compiling_again(name):
    """torch.compile sees one graph, the same for every image: nothing depends on values of the routes."""
    net = load_model(f"{name}.yaml").model.eval().fuse(verbose=False)
    images = [torch.rand(1, 3, 64, 96) for _ in range(3)]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        net(images[0])  # Ultralytics' head makes its anchors, which dynamo cannot trace
        compiled(images[0])
        with torch.compiler.set_stance("fail_on_recompile"):
            for image in images:
                torch.testing.assert_close(compiled(image)[0], net(image)[0], rtol=1e-4, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid", "yolo11n-mod-attention", "yolo12n-mod-attention", "yolo26-mod-vit-t"]
)
@pytest.mark.parametrize("training", [False, True])
def test_the_host_never_waits_in_a_forward(name, training):
    net = load_model(f"{name}.yaml").model.train(training)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        net(images)
        with HostWaits() as waits:
            net(images)
    assert waits.found == []


def test_waits_are_counted():
    with HostWaits() as waits:
        float(torch.ones(1))
        torch.ones(3)[torch.tensor([True, False, True])]
    assert len(waits.found) == 2
