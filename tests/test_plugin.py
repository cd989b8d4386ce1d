"""The Ultralytics plugin: registration, YAML rows and their errors, capacity and checkpoints."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from helpers import build, build_yaml, layers, run_python, shipped
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.nn import MoDStage
from mod_vision.plugin.register import register
from mod_vision.routing import num_routed
from mod_vision.yolo.blocks import MoDA2C2f, MoDAIFI, MoDC2PSA
from mod_vision.yolo.blocks.old_names import REMOVED
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of

STAGE_ROW, SECOND_STAGE_ROW = 6, 8  # of yolo26-mod-hybrid.yaml


# ------------------------------------------------------------------------------------------------------ registration


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


# -------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([512, 0.5, 4, 9], ["takes [channels, capacity, num_heads]", "got 4 arguments"]),
        ([], ["takes [channels, capacity, num_heads]", "got 0 arguments"]),
        ([512, {"capcity": 0.5}], ["unknown key capcity", "known are capacity, router"]),
        ([512, {"router": "best"}], ["unknown router 'best'", "linear, norm, contrast, random, grid"]),
        ([512, {"router": ["norm"]}], ["unknown router ['norm']", "linear, norm, contrast, random, grid"]),
        ([512, 0], ["(0, 1]", "got 0."]),
        ([512, 1.5], ["(0, 1]", "got 1.5."]),
        ([512, "half"], ["(0, 1]", "got 'half'."]),
        ([512, True], ["(0, 1]", "got True."]),
        ([512, {"capacity": 1.5}], ["(0, 1]", "got 1.5."]),
        ([512, []], ["(0, 1]", "got []."]),
        ([512, [0.25, 0.5]], ["must not increase", "[0.25, 0.5]"]),
        ([512, [0.5] * 7], ["7 capacities for 6 blocks", "between 1 and 6"]),
        ([512, 0.5, 3], ["128 channels do not divide into 3 heads", "try num_heads=4"]),
    ],
)
def test_bad_stage_rows(tmp_path, args, words):
    d = shipped()
    d["backbone"][STAGE_ROW][3] = args
    with pytest.raises(ValueError, match=r"^layer 6, row \[-1, 12, 'MoDStage', ") as error:
        build_yaml(tmp_path, d)
    for word in [repr(args), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([1024, {"capacity": 0}], ["(0, 1]", "got 0."]),
        ([1024, {"capacity": [0.5, 0.25]}], ["2 capacities for 1 blocks"]),
        ([1024, {"router": "best"}], ["unknown router 'best'", "linear, norm, contrast, random, grid"]),
        ([1024, {"heads": 2}], ["unknown key heads", "known are capacity, router"]),
    ],
)
def test_bad_twin_rows(tmp_path, args, words):
    d = shipped("yolo11-mod-attention.yaml")
    d["backbone"][10][3] = args
    with pytest.raises(ValueError, match=r"^layer 10, row \[-1, 2, 'MoDC2PSA', ") as error:
        build_yaml(tmp_path, d, "yolo11n-x.yaml")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([-1, 1], "a row is [from, repeats, module, [arguments]]"),
        ([-1, 1, "MoDStage", 64], "a row is [from, repeats, module, [arguments]]"),
        ([99, 1, "MoDStage", [64]], "from must be -1, which is the layer before, or the number of an earlier layer"),
        ([[-1, 6], 1, "Concat", [1]], "got [-1, 6]"),
        (["x", 1, "MoDStage", [64]], "got 'x'"),
        ([-1, 200000, "MoDStage", [64]], "repeats must be a whole number from 1 to 1000, got 200000"),
        ([-1, 0, "MoDStage", [64]], "repeats must be a whole number from 1 to 1000, got 0"),
        ([-1, 1, ["MoDStage"], [64]], "module must be the name of one, such as Conv, got ['MoDStage']"),
    ],
)
def test_the_shape_of_a_row(tmp_path, row, words):
    d = shipped()
    d["backbone"][6] = row
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(d))
    with pytest.raises(ValueError, match=r"^layer 6, row \[") as error:
        load_model(tmp_path / "a.yaml")
    assert f"layer 6, row {row}: " in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "is no model YAML: `backbone:` must be a list of rows"),
        ([1, 2], "is not a valid YAML mapping"),
        ({"train": "a", "val": "b", "names": {0: "x"}}, "got None. A data YAML is given as data=..."),
        ({k: v for k, v in shipped().items() if k != "head"}, "`head:` must be a list of rows"),
        (shipped() | {"head": {"a": 1}}, "`head:` must be a list of rows"),
        (shipped() | {"backbone": []}, "`backbone:` has no row"),
        (shipped() | {"nc": "abc"}, "`nc: abc`, the number of classes, must be a whole number of at least 1"),
        (shipped() | {"nc": 0}, "`nc: 0`, the number of classes"),
    ],
)
def test_what_is_no_model_yaml(tmp_path, content, words):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"a\.yaml") as error:
        load_model(tmp_path / "a.yaml")
    assert words in str(error.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_row(tmp_path, name):
    """As it stood in YAMLs, with options that no other row has."""
    d = shipped()
    d["backbone"][4] = row = [-1, 2, name, [512, False, 0.25, {"scope": "block", "tile": 8}]]
    told = f"{name} was removed; use {name[3:]}, the same block without routing, and route attention by MoDC2PSA "
    with pytest.raises(ValueError, match=rf"^{re.escape(f'layer 4, row {row}: {told}')}[^\n]*MoDA2C2f \(YOLO12\)\.$"):
        build_yaml(tmp_path, d)


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


def test_a2c2f_row_without_attention(tmp_path):
    d = shipped("yolo12-mod-attention.yaml")
    d["backbone"][6][3] = [512, False, -1]
    with pytest.raises(ValueError, match=r"^layer 6, row \[-1, 4, 'MoDA2C2f', .*nothing to route; write A2C2f\.$"):
        build_yaml(tmp_path, d, "yolo12n-x.yaml")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"capacity": 0}, ["mod:", "(0, 1]", "got 0."]),
        ({"capacity": 1.5}, ["mod:", "(0, 1]", "got 1.5."]),
        ({"capacity": "half"}, ["mod:", "(0, 1]", "got 'half'."]),
        ({"capacity": None}, ["mod:", "(0, 1]", "got None."]),
        ({"capacity": [0.5, 2]}, ["mod:", "(0, 1]", "got 2."]),
        ({"router": "best"}, ["mod:", "unknown router 'best'", "linear, norm, contrast, random, grid"]),
        ({"capcity": 0.5}, ["mod:", "unknown key capcity", "known are capacity, router, warmup, elastic, loss"]),
        ({"loss": {"gide": 1}}, ["mod.loss:", "unknown key gide", "known are guide, budget, z"]),
        ({"loss": {"guide": -1}}, ["mod.loss.guide", "at least 0", "got -1"]),
        ({"loss": {"guide": "much"}}, ["mod.loss.guide", "at least 0", "got 'much'"]),
        ({"loss": {"guide": float("nan")}}, ["mod.loss.guide", "at least 0", "got nan"]),
        ({"loss": {"budget": -0.1}}, ["mod.loss.budget", "at least 0", "got -0.1"]),
        ({"loss": {"z": True}}, ["mod.loss.z", "at least 0", "got True"]),
        ({"loss": [0.5]}, ["mod.loss must be a mapping of guide, budget, z", "got [0.5]"]),
        ({"warmup": 1}, ["mod.warmup", "in [0, 1)", "got 1."]),
        ({"warmup": -0.1}, ["mod.warmup", "in [0, 1)", "got -0.1."]),
        ({"warmup": None}, ["mod.warmup", "in [0, 1)", "got None."]),
        ({"elastic": 0.5}, ["mod.elastic", "[lowest, highest]", "got 0.5."]),
        ({"elastic": [0.5]}, ["mod.elastic", "[lowest, highest]", "got [0.5]."]),
        ({"elastic": [0.5, 0.25]}, ["mod.elastic", "[lowest, highest]", "got [0.5, 0.25]."]),
        ({"elastic": [0, 0.5]}, ["mod.elastic", "(0, 1]", "got 0."]),
        (0.5, ["mod must be a mapping of capacity, router, warmup, elastic, loss", "got 0.5"]),
    ],
)
def test_bad_mod_section(tmp_path, section, words):
    d = shipped()
    d["mod"] = section
    with pytest.raises(ValueError, match=r"^mod") as error:
        build_yaml(tmp_path, d)
    for word in words:
        assert word in str(error.value)


def test_row_wins_over_the_section(tmp_path):
    d = shipped()
    d["mod"] = {"capacity": 0.75, "router": "contrast"}
    d["backbone"][STAGE_ROW][3] = [512, [0.5, 0.25], 2, {"router": "norm"}]
    first, second = layers(build_yaml(tmp_path, d))
    assert first.capacities == (0.5, 0.5, 0.5, 0.25, 0.25, 0.25)
    assert first.blocks[0].attn.num_heads == 2
    assert type(first.router).__name__ == "NormRouter"
    assert second.capacities == (0.75,) * 4
    assert type(second.router).__name__ == "ContrastRouter"


def test_section_can_be_left_out(tmp_path):
    d = shipped("yolo11-mod-attention.yaml")
    del d["mod"]
    d["backbone"][10][3] = [1024, 0.5, {"capacity": 0.25, "router": "grid"}]  # 0.5 is C2PSA's own argument e
    (layer,) = layers(build_yaml(tmp_path, d, "yolo11n-x.yaml"))
    assert layer.capacities == (0.25,)
    assert type(layer.router).__name__ == "GridRouter"


def test_aifi_row(tmp_path):
    d = shipped("yolo11-mod-attention.yaml")
    d["backbone"][10] = [-1, 1, "MoDAIFI", [512, 8, {"capacity": 0.25}]]
    model = build_yaml(tmp_path, d, "yolo11n-x.yaml").eval()
    (layer,) = layers(model)
    assert type(layer) is MoDAIFI
    with torch.inference_mode():
        model(torch.rand(1, 3, 128, 128))
    assert layer.plan.indices.shape == (1, 4)


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo12n-mod-attention.yaml"]
)
def test_any_image_shape(name):
    model = build(name).eval()
    with torch.inference_mode():
        for size in ((96, 64), (32, 160), (32, 32)):
            out = model(torch.rand(2, 3, *size))[0]
            assert out.isfinite().all()
            for layer in layers(model):
                height, width = layer.plan.size
                assert (height / width) == (size[0] / size[1])
                k, area = num_routed(height * width, 0.5), 4 if height == size[0] // 16 and "12" in name else 1
                assert layer.plan.indices.shape == (2, -(-k // area) * area)


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo12n-mod-attention.yaml"]
)
def test_low_precision(name):
    dtype = torch.bfloat16
    model = build(name).eval().to(dtype)
    with torch.inference_mode():
        out = model(torch.rand(1, 3, 64, 64, dtype=dtype))[0]
    assert out.isfinite().all()
    assert all(layer.plan.logits.dtype == dtype for layer in layers(model))


def test_routed_layers_take_a_single_pixel():
    model = build("yolo26n-mod-hybrid.yaml").eval()
    for layer in layers(model):
        channels = layer.proj.in_channels if isinstance(layer.proj, nn.Conv2d) else layer.pos.in_channels
        assert layer(torch.rand(1, channels, 1, 1)).isfinite().all()
        assert layer.plan.indices.tolist() == [[0]]


def test_image_below_one_patch():
    """YOLO's neck needs sides of 32 pixels; where a routed layer is the first to fail, it says why."""
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^MoDA2C2f: a 1x1 map cannot be cut into 4 areas"):
        build("yolo12n-mod-attention.yaml").eval()(x)
    for name in ("yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo11n.yaml"):
        model = build(name).eval()
        with pytest.raises(RuntimeError, match=r"Sizes of tensors must match"):  # the neck's Concat, as when dense
            model(x)
        assert all(layer.plan.indices.tolist() == [[0]] for layer in layers(model))


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
