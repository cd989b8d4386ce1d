"""ViT backbones in YOLO: rows and weights that are taken or refused, trained, saved, exported."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.nn.vit import MoDViT
from mod_vision.routing import routed_layers
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.model.loading import load_model

TINY = "vit_tiny_patch16_224"

# -------------------------------------------------------------------------------------------------- rows and weights


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet50"}, r"'resnet50' is no ViT of timm; similar names are "),
        ({"name": "vit_smal_patch16_224"}, r"is no ViT of timm; similar names are vit_small_patch16_224"),
        ({"name": 3}, r"3 is no ViT of timm"),
        ({"blocks": "most"}, r"blocks must be alternate, or a list of block numbers from 0 to 11 .* got 'most'"),
        ({"blocks": []}, r"blocks must be"),
        ({"blocks": [12]}, r"blocks must be"),
        ({"blocks": [[3, 1]]}, r"blocks must be"),
        ({"blocks": [[1, 3], 2]}, r"blocks must be"),
        ({"blocks": [True]}, r"blocks must be"),
        ({"window": 1}, r"window must be a whole number of patches of at least 2, got 1"),
        ({"checkpoint": 1}, r"checkpoint must be true or false, got 1"),
        ({"pretrained": 3}, r"pretrained must be true, false or a file of weights, got 3"),
        ({"capacity": 0}, r"capacity must be a number in \(0, 1\]"),
        ({"router": "best"}, r"unknown router 'best'"),
    ],
)
def test_bad_options_name_the_row(options, words):
    with pytest.raises(ValueError, match=rf"^layer 0, row x: .*{words}"):
        MoDViT(8, **{"name": TINY, "where": "layer 0, row x", **options})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([-1, 1, "MoDViT", [128]], r"MoDViT takes \[channels, name of a ViT in timm\] .* got 1 arguments"),
        ([-1, 1, "MoDViT", [128, TINY, {"size": 3}]], r"unknown key size; known are capacity, router, blocks, window"),
        ([-1, 2, "MoDViT", [128, TINY]], r"MoDViT cannot be repeated"),
    ],
)
def test_bad_rows(row, words):
    d = copy.deepcopy(YOLO("yolo26-mod-vit-t.yaml").model.yaml)
    d["backbone"][0] = row
    with pytest.raises(ValueError, match=rf"^layer 0, row .*{words}"):
        DetectionModel(d, verbose=False)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file(tmp_path, suffix):
    """With timm's own loader: a classifier is dropped, a position embedding of another size resampled."""
    torch.manual_seed(1)
    source = timm.create_model(TINY, img_size=96, num_classes=7)
    nn.init.normal_(source.norm.weight)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), path)
    model = MoDViT(8, TINY, pretrained=str(path), capacity=1.0).eval()
    assert torch.equal(model.vit.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert torch.equal(model.vit.norm.weight, source.norm.weight)


def test_weights_that_do_not_fit(tmp_path):
    other = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    torch.save(other, tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"^layer 0: the weights in .*small\.pth do not fit vit_tiny.*size mismatch"):
        MoDViT(8, TINY, pretrained=str(tmp_path / "small.pth"), where="layer 0")
    few = timm.create_model(TINY, num_classes=0).state_dict()
    few["blocks.0.stranger"] = few.pop("blocks.0.norm1.weight")
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(ValueError, match=r"missing keys blocks\.0\.norm1\.weight; unexpected keys blocks\.0\.str"):
        MoDViT(8, TINY, pretrained=str(tmp_path / "few.pth"))
    with pytest.raises(FileNotFoundError, match=r"layer 0: the file of pretrained weights nowhere\.pth does not exist"):
        MoDViT(8, TINY, pretrained="nowhere.pth", where="layer 0")


def test_weights_offline():
    """In a process that may not use the network, at all speed."""
    code = f"from mod_vision.nn.vit import MoDViT; MoDViT(8, {TINY!r}, pretrained=True, where='layer 0')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": os.devnull + "/none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "ConnectionError: layer 0: timm's weights of vit_tiny_patch16_224 cannot be fetched" in done.stderr
    assert "give a file: {pretrained: /path/to/weights.safetensors}" in done.stderr


# -------------------------------------------------------------------------------------------------------- with YOLO


def test_freezing_layer_by_layer():
    """Ultralytics freezes what begins with `model.` and the given name."""
    names = [name for name, _ in YOLO("yolo26-mod-vit-t.yaml").model.named_parameters()]
    for frozen in ("model.0.vit.patch_embed.", "model.0.vit.blocks.3.", "model.0.groups.", "model.0.pyramid."):
        assert any(name.startswith(frozen) for name in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["", "-seg"])
def test_train_freeze_save_load_predict(kind, tiny_data, tmp_path, photos):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), weights)
    d = copy.deepcopy(YOLO(f"yolo26-mod-vit-t{kind}.yaml").model.yaml)
    d["backbone"][0][3][-1] |= {"pretrained": str(weights), "checkpoint": True, "window": 4}
    yaml_file = tmp_path / f"mine{kind}.yaml"
    yaml_file.write_text(repr({k: v for k, v in d.items() if k != "yaml_file"}))
    arguments = {"data": str(tiny_data), "epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}
    arguments |= {"project": str(tmp_path), "optimizer": "AdamW", "device": "cpu", "amp": False}
    arguments["freeze"] = ["0.vit.patch_embed", "0.vit.blocks.0"]
    YOLO(yaml_file).train(**arguments, name="run")
    assert "guide" in (tmp_path / "run" / "results.csv").read_text()
    trained = YOLO(tmp_path / "run" / "weights" / "last.pt")
    start, end = torch.load(weights), trained.model.float().model[0].vit.state_dict()
    torch.testing.assert_close(end["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"], rtol=1e-3, atol=1e-4)
    assert (end["blocks.5.mlp.fc1.weight"] - start["blocks.5.mlp.fc1.weight"]).abs().max() > 5e-4
    assert trained.predict(photos[0], imgsz=64, verbose=False)[0].boxes is not None
    assert len(mod_vision.route_maps(YOLO(tmp_path / "run" / "weights" / "last.pt"), photos[0], 64)) == 6

    weights.unlink()  # a trained model carries its weights: training on needs no others
    YOLO(tmp_path / "run" / "weights" / "last.pt").train(**arguments, name="again")
    assert YOLO(tmp_path / "again" / "weights" / "last.pt").model.yaml["backbone"][0][3][-1]["pretrained"] is False


def test_safe_loading(tmp_path):
    """Ultralytics can refuse pickles that hold anything but known classes."""
    YOLO("yolo26-mod-vit-t.yaml").save(tmp_path / "vit.pt")
    code = f"from ultralytics import YOLO; print(type(YOLO({str(tmp_path / 'vit.pt')!r}).model.model[0]).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("MoDViT"), done.stderr


def test_onnx_export_equals_eager(photos, tmp_path):
    torch.manual_seed(0)
    yolo = load_model("yolo26-mod-vit-t.yaml")
    for _, layer in routed_layers(yolo.model):
        nn.init.normal_(layer.router.proj.weight, std=3.0)
    nn.init.normal_(yolo.model.model[0].vit.pos_embed, std=0.1)
    yolo.save(tmp_path / "vit.pt")
    check = check_export(*export_model(tmp_path / "vit.pt", "onnx", 96), input_tensors(photos[:5], 96))
    assert check.passed, check


def test_capacity_of_the_row_and_of_a_block():
    model = YOLO("yolo26-mod-vit-t.yaml").model
    mod_vision.set_capacity(model, {0: 0.25})
    assert model.yaml["backbone"][0][3][-1]["capacity"] == 0.25
    assert {layer.capacities for _, layer in routed_layers(model)} == {(0.25,)}
    first = next(name for name, _ in routed_layers(model))
    mod_vision.set_capacity(model, {first: 0.5})
    assert dict(routed_layers(model))[first].capacities == (0.5,)
