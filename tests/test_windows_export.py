"""Exports of models that run on windows place them where eager does, and find what it finds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch
from test_export import _quantised
from ultralytics import YOLO
from windowed import SIZE, calibrated, looked_at

from mod_vision.routing.layer import routed_layers
from mod_vision.routing.placing import plan_windows
from mod_vision.viz.traced import open_traced
from mod_vision.yolo.export.check import ExportCheck, check_export
from mod_vision.yolo.export.exporter import Export, export_model, export_yolo, input_tensors
from mod_vision.yolo.export.graphs import onnx_session
from mod_vision.yolo.export.notes import read_notes
from mod_vision.yolo.export.ranking import is_window
from mod_vision.yolo.model.windows import head_of


@pytest.fixture(scope="module")
def checkpoint(photos, tmp_path_factory) -> Path:
    return calibrated("yolo26n", photos, tmp_path_factory.mktemp("windows"), coarse=0.25)


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory) -> Path:
    return calibrated("yolo26n", photos, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def exported(checkpoint) -> Export:
    return export_model(checkpoint, "onnx", SIZE)


def assert_equals_eager(check: ExportCheck) -> None:
    assert check.routed == "windows"
    assert check.same_indices == 1.0
    assert check.max_error < 2e-3  # an untrained model's float32 is not exact
    assert check.distinct_routes
    assert "100.00 % of windows agree" in str(check)


def test_a_coarse_pass_in_onnx(exported, photos):
    assert_equals_eager(check_export(*exported, looked_at(photos)))


@pytest.mark.parametrize(
    ("name", "format", "windows"),
    [
        ("yolo11n-seg", "onnx", {"router": "scout", "capacity": 0.4, "objectness": 0.25, "doubt": 0.6}),
        ("yolov8n", "onnx", {"router": "stem", "entry": 2}),  # a row that the exporter runs in another form
        ("yolo11n", "torchscript", {"coarse": 0.5, "size": 96}),
    ],
)
def test_corners_and_outputs_equal_eager(name, format, windows, photos, tmp_path):
    done = export_model(calibrated(name, photos, tmp_path, **windows), format, SIZE)
    assert_equals_eager(check_export(*done, looked_at(photos)))


def test_detections_of_plain_yolo_equal_eager(checkpoint, photos, tmp_path):
    """YOLO26 without NMS, three images at a time, by `YOLO.export`."""
    shutil.copy(checkpoint, tmp_path / "model.pt")
    path = Path(YOLO(tmp_path / "model.pt").export(format="onnx", imgsz=SIZE, nms=False, batch=3))
    eager: Any = YOLO(checkpoint).model.float().eval()
    eager.end2end = True
    images = list(torch.cat(looked_at(photos)).split(3))
    assert_equals_eager(check_export(path, lambda _: [], eager.fuse(verbose=False), images))


def test_the_check_notices_other_windows(exported, photos):
    _, layer = next(routed_layers(exported.eager))
    last = layer.router.head[-1].weight.data
    last.neg_()
    try:
        check = check_export(*exported, looked_at(photos)[:4])
    finally:
        last.neg_()
    assert check.same_indices < 1.0
    assert not check.passed


def test_an_export_without_windows_is_noticed(plain, tmp_path):
    yolo = YOLO(plain)
    head_of(yolo.model).entry.set_capacity(1.0)
    yolo.model.pt_path = str(tmp_path / "dense.pt")
    path = export_yolo(yolo, format="onnx", imgsz=64)
    with pytest.raises(ValueError, match=r"no ArgMax node for the windows of model\.0"):
        onnx_session(path, ["model.0"], windows=True)


def test_an_export_is_drawn_as_its_checkpoint(exported, checkpoint, photos):
    (note,) = read_notes(exported.path).layers
    assert (note.stride, note.window, note.windows) == (32, None, [2, 2])
    square = cv2.resize(cv2.imread(str(photos[0])), (SIZE, SIZE))
    (expected,), (found,) = (open_traced(file, SIZE).trace(square).layers for file in (checkpoint, exported.path))
    assert torch.equal(found.plan.corners, expected.plan.corners)
    assert torch.equal(found.passed, expected.passed)
    torch.testing.assert_close(found.plan.logits, expected.plan.logits, rtol=1e-3, atol=1e-3)
    assert (found.plan.size, found.plan.window, found.plan.cell) == ((8, 8), (2, 2), 32)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_leaves_the_router_in_float(format, plain, photos, tiny_data):
    """So windows lie where they did, though what they give is rounded."""
    done = export_model(plain, format, SIZE, quantize=8, data=str(tiny_data))
    assert any("model.2" in name for name in _quantised(done.path))
    before = _before_the_windows(done.path)
    assert {"Conv", "Convolution"} & set(before.values())
    assert any("router" in name for name in before)
    assert not [name for name, kind in before.items() if "Quant" in kind], "from the image to the windows"
    check = check_export(*done, input_tensors(photos[:8], SIZE))
    assert check.same_indices == 1.0
    assert "100.00 % of windows agree" in str(check)


def _before_the_windows(path: Path) -> dict[str, str]:
    """Return name and type of the nodes that the placing of windows depends on, back to the image."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        made = {out: node for node in graph.node for out in node.output}
        to_do = [node for node in graph.node if node.op_type == "ArgMax"]
        kind, name = (lambda node: node.op_type), (lambda node: node.name)
        sources = lambda node: [made[given] for given in node.input if given in made]  # noqa: E731
    else:
        ops = openvino.Core().read_model(next(path.glob("*.xml"))).get_ops()
        to_do = [op for op in ops if is_window(op.get_friendly_name())]
        kind, name = (lambda op: op.get_type_name()), (lambda op: op.get_friendly_name())
        sources = lambda op: [value.get_node() for value in op.input_values()]  # noqa: E731
    found: dict[str, str] = {}
    while to_do:
        node = to_do.pop()
        if name(node) not in found:
            found[name(node)] = kind(node)
            to_do += sources(node)
    return found


def test_half_precision_in_onnx(plain, photos):
    """Windows are placed by whole numbers, which stay exact."""
    done = export_model(plain, "onnx", SIZE, quantize=16)
    check = check_export(*done, input_tensors(photos[:8], SIZE))
    assert check.same_indices > 0.9


def test_windows_far_above_what_16_bits_hold_are_placed():
    """Sums in 32 bits: the largest windows of 20 cells, all of them sure."""
    logits = torch.full((1, 60 * 110), 20.0)
    logits[0, 60 * 110 - 1] = -20.0
    plan = plan_windows(logits, (60, 110), (20, 20), 3)
    assert plan.corners.tolist() == [[[0, 0], [0, 20], [0, 40]]]


def test_the_graph_is_ready_for_tensorrt(exported):
    """All shapes are known, nothing branches or loops, not even inside TensorRT, which does CumSum by a loop."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported.path), strict_mode=True, data_prop=True).graph
    known = {value.name: value.type.tensor_type.shape for value in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        for out in node.output:
            assert out in known, node.name
            assert all(side.dim_value > 0 for side in known[out].dim), node.name
    forbidden = {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "CumSum", "NonMaxSuppression", "RoiAlign"}
    assert not forbidden & {node.op_type for node in graph.node}
    scatters = [node for node in graph.node if node.op_type.startswith("Scatter")]
    assert {attribute.s for node in scatters for attribute in node.attribute if attribute.name == "reduction"} <= {
        b"none"
    }
    constants = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "TopK")
    assert [node.op_type for node in graph.node].count("ArgMax") == 4, "a window each"


@pytest.mark.parametrize(
    ("format", "name", "windows"),
    [
        ("onnx", "yolov8n", {"coarse": 0.25}),
        ("openvino", "yolo26n-seg", {"router": "density", "coarse": 0.25, "objectness": 0.5}),
    ],
)
def test_any_number_of_images_of_one_size(format, name, windows, photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ultralytics"), "propagate", True)
    done = export_model(calibrated(name, photos, tmp_path, **windows), format, SIZE, dynamic=True)
    assert "dynamic=True takes any number of images, all of 256x256 px" in caplog.text
    images = torch.cat(looked_at(photos))
    assert_equals_eager(check_export(*done, [images[:1], images[1:4], images[4:]]))
    with pytest.raises(Exception, match=r"(?i)dimension|shape"):
        check_export(*done, [images[:1, :, :128]])
    alike = [np.full((120, 160, 3), value, np.uint8) for value in (0, 90, 200)]  # padded to the square all the same
    task = "segment" if name.endswith("-seg") else "detect"
    assert len(YOLO(done.path, task=task).predict(alike, batch=3, verbose=False, save=False)) == 3


def test_any_number_of_images_is_refused_where_it_is_not_known_to_work(plain):
    with pytest.raises(
        ValueError, match="format=torchscript: exports with windows have a fixed size, and any batch only"
    ):
        YOLO(plain).export(format="torchscript", imgsz=SIZE, dynamic=True)


def test_a_number_of_windows_of_its_own_for_each_image_is_refused(plain, tmp_path):
    yolo = YOLO(plain)
    head_of(yolo.model).entry.set_threshold(0.5)
    yolo.save(tmp_path / "threshold.pt")
    with pytest.raises(ValueError, match=r"an export has a fixed number of windows, not as many"):
        export_model(tmp_path / "threshold.pt", "onnx", SIZE)
