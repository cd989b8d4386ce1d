"""The Ultralytics plugin: registration, models by their bare names, fresh processes, and old checkpoints."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from helpers import build, build_yaml, layers, run_python, shipped
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.nn import MoDStage
from mod_vision.plugin.register import register
from mod_vision.yolo.blocks import MoDA2C2f, MoDC2PSA
from mod_vision.yolo.model.windows import head_of


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("yolo26n-mod-hybrid.yaml", [MoDStage, MoDStage]),
        ("yolo26n-mod-hybrid-seg.yaml", [MoDStage, MoDStage]),
        ("yolo11n-mod-attention.yaml", [MoDC2PSA]),
        ("yolo11n-mod-attention-seg.yaml", [MoDC2PSA]),
        ("yolo12n-mod-attention.yaml", [MoDA2C2f, MoDA2C2f]),
        ("yolo12n-mod-attention-seg.yaml", [MoDA2C2f, MoDA2C2f]),
    ],
)
def test_shipped_models_build_by_bare_name(name, kinds):
    model = build(name).eval()
    assert [type(layer) for layer in layers(model)] == kinds
    assert all(max(layer.capacities) == 0.5 for layer in layers(model))
    assert model.yaml["scale"] == "n"
    for i, layer in enumerate(model.model):
        assert layer.i == i
        assert layer.np == sum(p.numel() for p in layer.parameters())
    with torch.inference_mode():
        model(torch.rand(1, 3, 64, 64))
    assert all(layer.plan.logits.isfinite().all() for layer in layers(model))


@pytest.mark.parametrize("name", ["yolo26n", "yolo26n-seg", "yolo11n", "yolo11n-seg", "yolo12n", "yolo12n-seg"])
def test_flagships_are_the_published_networks_on_windows(name):
    published, routed = build(f"{name}.yaml"), build(f"{name.replace('n', 'n-mod', 1)}.yaml").eval()
    head = head_of(routed)
    assert head.entry.window == 192
    assert head.entry.capacities == (0.25,)
    extra = routed.state_dict().keys() - published.state_dict().keys()
    assert all(".router." in key for key in extra)
    assert published.state_dict().keys() <= routed.state_dict().keys()
    with torch.inference_mode():
        routed(torch.rand(1, 3, 192, 384))
    assert head.windows.logits.isfinite().all()


def test_scale_sets_width_and_depth():
    stages = layers(build("yolo26n-mod-hybrid.yaml"))
    assert [(len(stage.blocks), stage.pos.out_channels) for stage in stages] == [(6, 128), (4, 256)]


def test_registration_is_idempotent():
    before = (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.loss, tasks.RTDETRDetectionModel.loss)
    register()
    mod_vision.plugin.autoload.install()
    assert (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.loss, tasks.RTDETRDetectionModel.loss) == before
    assert not hasattr(tasks.BaseModel.loss.__wrapped__, "__wrapped__"), "the loss is wrapped once"
    assert not any(isinstance(finder, mod_vision.plugin.autoload._Finder) for finder in sys.meta_path)


def test_dense_models_stay_dense():
    model = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    assert layers(model) == []
    with pytest.raises(ValueError, match=r"no routed layer"):
        mod_vision.set_capacity(model, 0.5)


def test_own_file_wins_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = shipped()
    d["mod"]["capacity"] = 0.125
    model = build_yaml(Path(), d, "yolo26n-mod-hybrid.yaml")
    assert layers(model)[0].capacities[0] == 0.125


def test_fresh_process_finds_the_layers(tmp_path):
    code = """
import sys
import torch
assert "ultralytics" not in sys.modules and "mod_vision.yolo" not in sys.modules
assert not any(name.startswith("mod_vision.yolo") for name in sys.modules)
from ultralytics import YOLO
model = YOLO("yolo26n-mod-hybrid.yaml")
print([type(layer).__name__ for layer in model.model.model][6])
model.save("routed.pt")
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("MoDStage")
    reload = """
import mod_vision.yolo.model.rows  # which registration needs itself
import torch
from ultralytics import YOLO
model = YOLO("routed.pt").model.eval()
names = [name for name, m in model.named_modules() if hasattr(m, "capacities")]
assert names == ["model.6", "model.8"], names
with torch.inference_mode():
    model(torch.zeros(1, 3, 64, 64))
assert model.model[6].plan.indices.shape == (1, 8)
print("loaded")
"""
    for safe in ("0", "1"):
        done = run_python(reload, tmp_path, ULTRALYTICS_SAFE_LOAD=safe)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("loaded")
        assert "mod_vision" not in done.stderr


def test_ultralytics_imported_first(tmp_path):
    """Where the entry point is switched off, importing the package and registering by hand are both enough."""
    code = """
import os
import ultralytics.nn.tasks as tasks
try:
    tasks.DetectionModel("yolo26n-mod-hybrid.yaml", verbose=False)
except FileNotFoundError as error:
    print("off:", error)
del os.environ["MOD_VISION_AUTOLOAD"]
import importlib, mod_vision
importlib.reload(mod_vision)
print(type(tasks.DetectionModel("yolo26n-mod-hybrid.yaml", verbose=False).model[6]).__name__)
"""
    done = run_python(code, tmp_path, MOD_VISION_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    off, on = done.stdout.strip().splitlines()[-2:]
    assert off.startswith("off:")
    assert "yolo26" in off
    assert on == "MoDStage"


def test_autoload_off_leaves_ultralytics_alone(tmp_path):
    d = shipped()
    (tmp_path / "yolo26n-x.yaml").write_text(yaml.safe_dump(d))
    code = """
import ultralytics.nn.tasks as tasks, sys
assert not hasattr(tasks, "mod_vision_registered")
assert not any(name.startswith("mod_vision.yolo") for name in sys.modules)
try:
    tasks.DetectionModel("yolo26n-x.yaml", verbose=False)
except KeyError as error:
    print("unknown module", error)
from mod_vision.plugin.register import register
register()
print(type(tasks.DetectionModel("yolo26n-x.yaml", verbose=False).model[6]).__name__)
"""
    done = run_python(code, tmp_path, MOD_VISION_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-2:] == ["unknown module 'MoDStage'", "MoDStage"]


def test_a_checkpoint_with_a_removed_row(tmp_path):
    """One line, also where it is loaded as the pickle that it is, and nothing is installed."""
    save = """
import types, sys
from ultralytics import YOLO
from ultralytics.nn.modules.block import C3k2
from torch import nn
import mod_vision.nn.skip
module = sys.modules["mod_vision.yolo.twins.conv"] = types.ModuleType("mod_vision.yolo.twins.conv")
module.MoDC3k2 = type("MoDC3k2", (C3k2,), {"__module__": module.__name__})
mod_vision.nn.skip.CoarseSkip = type("CoarseSkip", (nn.Module,), {"__module__": "mod_vision.nn.skip"})
model = YOLO("yolo26n.yaml")
model.model.model[4].__class__ = module.MoDC3k2
model.model.model[4].skip = mod_vision.nn.skip.CoarseSkip()
model.save("old.pt")
"""
    done = run_python(save, tmp_path)
    assert done.returncode == 0, done.stderr
    told = "MoDC3k2 was removed; use C3k2, the same block without routing, and route attention by MoDC2PSA"
    for safe in ("0", "1"):
        done = run_python("from ultralytics import YOLO; YOLO('old.pt')", tmp_path, ULTRALYTICS_SAFE_LOAD=safe)
        assert done.stderr.strip().splitlines()[-1].startswith(f"ValueError: {told}")
        assert "AutoInstall" not in done.stdout + done.stderr
    for trust in ("0", "1"):
        code = "from mod_vision.cli.main import main; main(['val', 'model=old.pt', 'data=mod-open.yaml'])"
        done = run_python(code, tmp_path, MOD_VISION_TRUST=trust)
        assert done.stderr.startswith(f"error: checkpoint old.pt does not load: {told}")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("safe", ["0", "1"])
def test_a_checkpoint_from_before_the_blocks_moved(tmp_path, safe):
    save = """
from ultralytics import YOLO
from mod_vision.yolo.blocks import MoDC2PSA
MoDC2PSA.__module__ = "mod_vision.yolo.twins.attention"
YOLO("yolo11n-mod-attention.yaml").save("old.pt")
"""
    done = run_python(save, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"mod_vision.yolo.twins.attention" in zipfile.ZipFile(tmp_path / "old.pt").read("old/data.pkl")
    load = "from ultralytics import YOLO; print(type(YOLO('old.pt').model.model[10]))"
    done = run_python(load, tmp_path, ULTRALYTICS_SAFE_LOAD=safe)
    assert done.stdout.strip().endswith("<class 'mod_vision.yolo.blocks.attention.MoDC2PSA'>"), done.stderr
