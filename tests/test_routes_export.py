"""Route maps of ONNX exports are those of the checkpoint, and what other exports say of theirs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers import with_random_routers, write_vit_yaml
from ultralytics import YOLO

from mod_vision.viz.routes import crop_maps, route_maps
from mod_vision.viz.traced import open_traced
from mod_vision.yolo.export.exporter import export_yolo
from mod_vision.yolo.export.notes import read_notes
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model

IMGSZ = 160
SHIPPED = "yolo26n-mod-hybrid-seg.pt"
EXPORTS = {
    "depth": (SHIPPED, [0.5, 0.25], {"dynamic": True}),
    "areas": ("yolo12n-mod-attention.yaml", 0.5, {}),
    "windows": ("windows", 0.5, {"batch": 2}),
}


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request, tmp_path_factory):
    """A checkpoint and its ONNX file."""
    folder = tmp_path_factory.mktemp(request.param)
    name, capacity, options = EXPORTS[request.param]
    yolo = (
        load_model(name)
        if name == SHIPPED
        else with_random_routers(write_vit_yaml(folder, 3) if name == "windows" else name)
    )
    set_capacity(yolo, capacity)
    yolo.save(folder / "model.pt")
    return folder / "model.pt", export_yolo(load_model(folder / "model.pt"), format="onnx", imgsz=IMGSZ, **options)


def test_an_onnx_export_has_the_maps_of_its_checkpoint(exported, photo):
    checkpoint, export = exported
    models = open_traced(checkpoint, IMGSZ), open_traced(export, IMGSZ)
    size = (IMGSZ, 100) if models[1].dynamic else (IMGSZ, IMGSZ)
    for image in (cv2.resize(photo, size), cv2.resize(photo[::-1], size)):
        wanted, given = (crop_maps(model.trace(image)) for model in models)
        assert len(wanted) == len(given) > 0
        for a, b in zip(wanted, given, strict=True):
            assert (a.name, a.blocks, a.extent) == (b.name, b.blocks, b.extent)
            np.testing.assert_array_equal(a.kept, b.kept)
            np.testing.assert_array_equal(a.depth, b.depth)
            np.testing.assert_allclose(a.score, b.score, atol=1e-4)


def test_exports_of_a_fixed_size_lose_their_padding_too(exported, photo):
    maps = route_maps(exported[1], photo[: photo.shape[1] // 2], IMGSZ)
    for m in maps:
        assert m.kept.shape[0] < m.kept.shape[1]
        assert m.extent[2] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_results_are_those_of_yolo_predict(exported, photo, kind):
    path = exported[kind == "onnx"]
    model = open_traced(path, IMGSZ)
    result = model.postprocess(0.01)(model.trace(photo).forward, photo)
    expected = YOLO(path).predict(photo, imgsz=IMGSZ, conf=0.01, device="cpu", verbose=False)[0]
    torch.testing.assert_close(result.boxes.data, expected.boxes.data, rtol=1e-3, atol=1e-2)
    assert result.names == expected.names
    assert (result.masks is None) == (expected.masks is None)
    if result.masks is not None:
        assert (result.masks.data == expected.masks.data).float().mean() > 0.999


def test_models_that_do_not_show_their_routes(tmp_path, photo):
    for name in ("model.engine", "model.torchscript", "model_openvino_model"):
        with pytest.raises(ValueError, match=r"does not show what it routes; use the checkpoint"):
            route_maps(tmp_path / name, photo)
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx does not exist"):
        route_maps(tmp_path / "missing.onnx", photo)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"broken\.onnx says nothing about its routing"):
        route_maps(tmp_path / "broken.onnx", photo)


@pytest.mark.parametrize("tile", [1, 8])
def test_notes_of_older_exports(exported, tmp_path, tile):
    """They name the side of a token, and convolutions were routed by tiles of more than a pixel."""
    graph = onnx.load(exported[1])
    entry = next(entry for entry in graph.metadata_props if entry.key == "mod_vision")
    entry.value = json.dumps([note | {"tile": tile} for note in json.loads(entry.value)])
    onnx.save(graph, tmp_path / "old.onnx")
    if tile == 1:
        assert read_notes(tmp_path / "old.onnx") == read_notes(exported[1])
    else:
        with pytest.raises(ValueError, match=r"old\.onnx routes convolutions by tiles, which was removed; export a"):
            read_notes(tmp_path / "old.onnx")


def test_an_export_at_capacity_1_says_nothing(tmp_path):
    yolo = load_model("yolo26n-mod-hybrid.yaml")
    set_capacity(yolo, 1.0)
    yolo.save(tmp_path / "dense.pt")
    export_yolo(load_model(tmp_path / "dense.pt"), format="torchscript", imgsz=32)
    with pytest.raises(ValueError, match="made at capacity 1"):
        read_notes(tmp_path / "dense.torchscript")
