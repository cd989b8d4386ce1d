"""What a YAML says of windows, and weights that are loaded, copied and saved: kept, told, refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import attempt, write_windows_yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import ModelEMA
from window_pairs import described, made, pair

from mod_vision import set_capacity
from mod_vision.routing.finite import check_finite
from mod_vision.routing.window_routers import CellHead
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of


def test_copies_and_files_keep_windows(tmp_path):
    """deepcopy, EMA, pickle, a checkpoint, weights alone, half precision."""
    routed, _ = pair("yolo26n")
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        expected = routed(x)[0]
        for other in (copy.deepcopy(routed), ModelEMA(routed).ema, pickle.loads(pickle.dumps(routed))):
            assert torch.equal(other.eval()(x)[0], expected)
            assert head_of(other).entry is other.model[0]
        routed.half()(x.half())
        routed.float()
        with torch.autocast("cpu", torch.bfloat16):
            routed(x)
    torch.save({"model": routed}, tmp_path / "w.pt")
    again = load_model(tmp_path / "w.pt").model
    assert type(head_of(again)).__name__ == "WindowedDetect"


@pytest.mark.parametrize(
    ("name", "windows", "told"),
    [
        ("yolo26n", {"size": 100}, "mod.windows.size must be a multiple of 32 px"),
        ("yolov8n-p6", {"size": 96}, "must be a multiple of 64 px, the model's largest stride"),
        ("yolo26n", {"capacity": 0}, "capacity"),
        ("yolo26n", {"router": "magic"}, "unknown router 'magic', choose one of look, stem"),
        ("yolo26n", {"router": "density"}, "reads the coarse pass; set coarse: 0.25"),
        ("yolo26n", {"router": "stem"}, "set entry: to a later row"),
        ("yolo26n", {"coarse": 0.3}, "mod.windows.coarse must be one of 0, 0.5, 0.25, 0.125"),
        ("yolo26n", {"objectness": 2}, "mod.windows.objectness must be a number in [0, 1], got 2"),
        ("yolo26n", {"doubt": -1}, "mod.windows.doubt must be a number, at least 0, got -1"),
        ("yolo26n", {"entry": 40}, "windows cannot be taken at layer 40"),
        ("yolo26n", {"entry": -1}, "mod.windows.entry must be the number of a row"),
        ("yolo26n", {"entry": 17}, "the head reads a row before layer 17"),
        ("yolo26n", {"sizes": 3}, "mod.windows: unknown key sizes"),
        ("yolo26n", {"nc": 3}, "mod.windows: unknown key nc"),
        ("yolo11n-cls", {"size": 64}, "head Classify does not run on windows"),
        ("yolo26n-mod-hybrid", {"size": 64}, "routes tokens of the whole image"),
    ],
)
def test_what_is_refused(name, windows, told):
    d = tasks.yaml_model_load(f"{name}.yaml")
    d["mod"] = {"windows": windows}
    _, error = attempt(lambda: tasks.DetectionModel(d, verbose=False))
    assert told in error
    assert "\n" not in error


def test_images_that_are_no_whole_number_of_cells():
    routed, _ = pair("yolo26n")
    with pytest.raises(ValueError, match="multiples of 32 px, got 200 x 256"):
        routed(torch.rand(1, 3, 200, 256))


def test_attention_is_told(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    tasks.DetectionModel(described("yolo26n", size=128), verbose=True)
    assert "attention of layer 10 (C2PSA) is within a window" in caplog.text


def test_look_starts_from_the_weights_that_are_loaded():
    routed, dense = pair("yolo26n")
    rows = head_of(routed).entry.router.rows
    assert torch.equal(rows[0].conv.weight, dense.model[0].conv.weight)
    with torch.no_grad():
        rows[0].conv.weight.fill_(1.0)
    other = made(described("yolo26n", capacity=0.25))
    other.load(routed, verbose=False)  # a router that was trained is kept
    assert float(head_of(other).entry.router.rows[0].conv.weight.min()) == 1.0
    assert isinstance(rows, nn.Sequential)


def test_weights_of_other_classes_leave_the_router_untrained():
    """Its scores find no place, so nobody may take it for a trained one."""
    source, same = (made(described("yolo26n", router="look")) for _ in range(2))
    head_of(source).entry.router.steps += 100
    same.load(source, verbose=False)
    assert head_of(same).entry.router.trained
    other = made({**described("yolo26n", router="look"), "nc": 7})
    other.load(source, verbose=False)
    assert not head_of(other).entry.router.trained


@pytest.mark.parametrize("halvings", range(6))
def test_the_head_of_a_router_comes_down_to_cells(halvings):
    head = CellHead(16, halvings, 3).eval()
    assert head(torch.rand(1, 16, 2 * 2**halvings, 3 * 2**halvings)).shape == (1, 4, 2, 3)


@torch.no_grad()
def test_scores_of_a_class_that_are_no_numbers_are_noticed():
    model = made(described("yolo26n", router="look")).eval()
    head_of(model).entry.router.head[-1].bias[-1] = float("nan")
    model(torch.rand(1, 3, 128, 128))
    with pytest.raises(ValueError, match=r"router scores of model\.0 are NaN"):
        check_finite(model)


def test_a_yolo_object_takes_capacity_and_saves_it(tmp_path):
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64, capacity=0.4)))
    set_capacity(yolo, 0.2)
    assert yolo.model.yaml["mod"]["windows"] == {"size": 64, "capacity": 0.2}
    yolo.save(tmp_path / "a.pt")
    assert YOLO(tmp_path / "a.pt").model.model[0].capacities == (0.2,)


def test_names_come_with_all_weights_or_not():
    dense = made(described("yolo26n"))
    dense.names = {0: "car", 1: "bus", 2: "van"}
    routed = made(described("yolo26n", size=64))
    routed.load(dense, verbose=False)
    assert routed.names == dense.names
    larger = made(described("yolo26s", size=64))
    larger.load(dense, verbose=False)
    assert larger.names == {0: "0", 1: "1", 2: "2"}
    rows = head_of(larger).entry.router.rows
    assert torch.equal(rows[0].conv.weight, larger.model[0].conv.weight)
