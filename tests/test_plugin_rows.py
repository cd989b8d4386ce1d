"""Rows of a model YAML and its `mod:` section: what they build, and what is refused in one line."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from helpers import build_yaml, layers, shipped

from mod_vision.yolo.blocks import MoDAIFI
from mod_vision.yolo.blocks.old_names import REMOVED
from mod_vision.yolo.model.loading import load_model

STAGE_ROW = 6  # of yolo26-mod-hybrid.yaml


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
