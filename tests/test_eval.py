"""Executed FLOPs against arithmetic, routing truth against a loop, predictions collected once."""

from collections import Counter

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mod_vision.eval.flops import executed_gflops
from mod_vision.nn import MoDStage
from mod_vision.routing.truth import RoutingTruth, majority_cells
from mod_vision.yolo.images import load_model
from mod_vision.yolo.validate import validate


@settings(max_examples=10, deadline=None)
@given(height=st.integers(2, 5), width=st.integers(2, 5), seed=st.integers(0, 99))
def test_routing_truth_counts_like_a_loop(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    kept, objects = (torch.rand(3, height, width, generator=generator) > 0.5 for _ in range(2))
    truth = RoutingTruth()
    for i in range(3):
        truth.update("stage", kept[i : i + 1], {"objects": objects[i : i + 1], "rest": ~objects[i : i + 1]})
    cells = list(zip(kept.flatten().tolist(), objects.flatten().tolist(), strict=True))
    hits = [k for k, o in cells if o]
    if hits:
        assert truth.shares()["stage"]["objects"] == pytest.approx(sum(hits) / len(hits))
    assert truth.random()["stage"] == pytest.approx(sum(k for k, _ in cells) / len(cells))
    fitting = sum(min(int(kept[i].sum()), int(objects[i].sum())) for i in range(3))
    if hits:
        assert truth.best()["stage"]["objects"] == pytest.approx(fitting / len(hits))
        assert truth.shares()["stage"]["objects"] <= truth.best()["stage"]["objects"]


def test_majority_cells():
    labels = torch.zeros(4, 4)
    labels[:2, :2] = 3
    labels[0, 2] = 3
    assert majority_cells(labels, (2, 2), 3).tolist() == [[True, False], [False, False]]


def test_flops_count_linear_layers_and_attention():
    class Net(nn.Module):
        def __init__(self, capacity):
            super().__init__()
            self.stage = MoDStage(3, 32, 1, capacity, router="grid")

        def forward(self, x):
            return self.stage(x)

    n, c = 16 * 16, 32
    convs = 2 * n * (3 * c + 9 * c)

    def block(k):
        return 2 * k * (3 * c * c + c * c + 4 * c * c) + 4 * k * k * c

    assert executed_gflops(Net(1.0), 16) == pytest.approx((convs + block(n)) / 1e9)
    skip = 2 * n * c * c
    assert executed_gflops(Net(0.25), 16) == pytest.approx((convs + skip + block(n // 4)) / 1e9)


def test_predictions_are_collected_once_in_a_folder_named_coco(tiny_data, tmp_path, monkeypatch):
    """Ultralytics treats a split file coco/val2017.txt specially and collects predictions by itself."""
    monkeypatch.chdir(tmp_path)
    photos = sorted((tiny_data.parent / "images" / "val").glob("*.jpg"))
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "val2017.txt").write_text("\n".join(map(str, photos)))
    data = yaml.safe_load(tiny_data.read_text())
    data |= {"path": str(tmp_path / "coco"), "train": "val2017.txt", "val": "val2017.txt"}
    (tmp_path / "coco.yaml").write_text(yaml.safe_dump(data))
    per_image = Counter()

    def receive(found, files, predictions):
        per_image.update(p["file_name"] for p in predictions)

    validate(
        load_model("yolo26n-mod.yaml"), receive, data=str(tmp_path / "coco.yaml"), imgsz=64, device="cpu", conf=1e-9
    )
    assert set(per_image.values()) == {300}  # max_det, each once
