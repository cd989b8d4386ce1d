"""The comparison of routed windows with what a user would try instead: how windows are placed, and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_windows_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics import YOLO

from mod_vision.eval.accuracy.matching import Matches
from mod_vision.routing.labels import labelled
from mod_vision.yolo.model.windows import head_of
from studies.opponents.placing import Esod, Oracle, Random, Zone, grid_scores, placing_by, zones_of
from studies.opponents.report import file_name, report
from studies.opponents.scoring import draws, objects_of, scenes_of, shown_at


@pytest.fixture
def yolo(tmp_path) -> YOLO:
    return YOLO(str(write_windows_yaml(tmp_path, size=64, capacity=0.2)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9), st.integers(1, 2))
def test_a_grid_covers_the_image_and_knows_the_best_cell_of_each_square(seed, rows, cols, side):
    torch.manual_seed(seed)
    cells = torch.randn(rows, cols)
    corners, best = grid_scores(cells, (side, side))
    seen = torch.zeros(rows, cols)
    for (r, c), score in zip(corners.tolist(), best, strict=True):
        own = cells[r : r + side, c : c + side]
        assert own.shape == (side, side)
        assert score == own.max()
        seen[r : r + side, c : c + side] += 1
    assert seen.min() >= 1


@torch.no_grad()
def test_others_place_as_many_windows(yolo):
    x = torch.rand(1, 3, 256, 320)
    yolo.model.eval()(x)
    plan = head_of(yolo.model).windows
    cells = torch.zeros(1, 8, 10)
    cells[0, 6, 8] = 1
    for kind in (Random, Oracle):
        own = placing_by(yolo, kind).model.eval()
        with labelled(lambda size: cells):
            own(x)
        other = head_of(own).windows
        assert other.width == plan.width
        assert torch.equal(other.logits, plan.logits), "what cells count in the score is as it was"
        if kind is Oracle:
            assert other.kept()[0, 6, 8]
    assert type(head_of(yolo.model).entry) is not type(head_of(own).entry), "the model that is given stays as it is"


@torch.no_grad()
def test_a_zone_is_covered_whatever_is_in_the_image(yolo):
    boxes = torch.tensor([[0.25, 0.25, 0.05, 0.05], [0.8, 0.9, 0.1, 0.05]])
    Zone.zones = zones_of({"harbour": [boxes[:1], boxes[1:]]}, (8, 10))
    Zone.corners.clear()
    own = placing_by(yolo, Zone).model.eval()
    for camera, share in (("harbour", 0.5), ("unknown", 1.0)):
        Zone.camera = camera
        own(torch.rand(1, 3, 256, 320))
        kept = head_of(own).windows.kept()[0].float()
        assert kept.mean() <= share
        zone = Zone.zones.get(camera, torch.ones(1, 1, 8, 10))[0, 0] > 0
        assert kept[zone].min() == 1


@torch.no_grad()
def test_squares_of_a_grid_by_what_is_in_them(yolo):
    x = torch.rand(1, 3, 256, 320)
    own = placing_by(yolo, Esod).model.eval()
    entry = head_of(own).entry
    own(x)
    entry.least = float(entry.best.sort(descending=True).values[2])
    own(x)
    plan = head_of(own).windows
    assert plan.width == int((entry.best >= entry.least).sum()) >= 3
    assert int(plan.owned((8, 16, 32)).sum()) == plan.width * (8 * 8 + 4 * 4 + 2 * 2), "up to their borders"
    entry.least = float("inf")
    assert own(x)[0].shape[2 if not own.end2end else 1] == 0


def test_scenes_are_drawn_as_a_whole():
    scenes = scenes_of(["a_1.jpg", "b_1.jpg", "a_2.jpg", "c_9.jpg"], "^[a-z]")
    assert scenes.tolist() == [0, 1, 0, 2]
    often = draws(scenes)
    assert (often[:, 0] == often[:, 2]).all()
    assert (often[:, [0, 1, 3]].sum(1) == 3).all()
    with pytest.raises(ValueError, match=r"scene='\^x' finds nothing in a_1.jpg"):
        scenes_of(["a_1.jpg"], "^x")


def test_recall_and_precision_are_those_of_what_is_shown():
    box = {"area": 100.0, "iscrowd": 0}
    truth: dict = {"images": [{"id": 1}], "categories": [{"id": 0}, {"id": 1}]}
    truth["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10], **box}
        for i, (x, c) in enumerate([(0, 0), (50, 0), (100, 1), (150, 1)])
    ]
    found = [(0, 0, 0.9), (51, 0, 0.3), (100, 1, 0.2), (150, 0, 0.8)]  # the third is not shown, the last not its class
    matches = Matches("bbox")
    matches.add(
        truth,
        [{"image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10], "score": score} for x, c, score in found],
    )
    assert shown_at(matches, range(2)) == {"recall": 0.5, "precision": 2 / 3}
    assert shown_at(matches, range(2), conf=0.1) == {"recall": 0.75, "precision": 0.75}
    assert shown_at(matches, range(2), conf=0.95) == {"recall": 0.0, "precision": 0.0}


def test_objects_of_a_coarse_pass_are_not_counted():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 300, 40]])
    label = {"boxes": np.array([[0, 0, 5, 5], [0, 0, 150, 20]]), "cls": np.array([[1], [0]])}
    found = objects_of(boxes, label, {0: "car", 1: "bus"}, 200.0)
    assert (found.areas.tolist(), list(found.classes)) == ([25.0], ["bus"])
    assert len(objects_of(boxes, label, {0: "car", 1: "bus"}, float("inf")).areas) == 2


def test_ways_are_compared_with_the_dense_model_of_their_runtime(tmp_path: Path):
    base = {"imgsz": 640, "AP": 0.2, "AP50": 0.5, "APs": 0.1, "sparse": 0.2, "crowded": 0.3, "resamples": [0.2]}
    windows = {"lost": {"router": {"all": 0.1}}, "windows_median": 4, "windows_p95": 8, "computed_share": 0.3}
    routed = {"windows": windows, "per_image": [0, 4, 8], "whole": [False] * 3}
    ms = {"dense": [100] * 3, "dense at 480 px, trained for it": [60] * 3, "routed": [20, 40, 60]}
    ms |= {"dense, OpenVINO": [50] * 3, "routed, OpenVINO": [10, 20, 30]}
    for name in ms:
        way = base | {"name": name} | (routed if name.startswith("routed") else {})
        (tmp_path / file_name(name)).write_text(json.dumps(way))
    (tmp_path / "times.json").write_text(json.dumps({"images": [0, 1, 2], "ms": ms}))
    lines = report(tmp_path, list(ms)).splitlines()
    assert any(line.startswith("routed: 20.0 ms and 5.00 for each window") and "16.0 windows" in line for line in lines)
    assert any(line.startswith("routed, OpenVINO: 10.0 ms and 2.50") and "16.0 windows" in line for line in lines)


def test_the_table_is_made_of_the_files_alone(tmp_path: Path):
    base = {"imgsz": 640, "AP50": 0.5, "APs": 0.1, "sparse": 0.2, "crowded": 0.3}
    lost = {
        "lost": {"router": {"all": 0.1, "small": 0.2}},
        "windows_median": 4,
        "windows_p95": 8,
        "computed_share": 0.3,
    }
    dense = {"name": "dense", "AP": 0.2, **base, "resamples": [0.2, 0.3]}
    routed = {"name": "routed", "AP": 0.19, **base, "resamples": [0.19, 0.29], "windows": lost}
    routed |= {"per_image": [0, 4, 8], "whole": [False] * 3}
    for way in (dense, routed):
        (tmp_path / file_name(way["name"])).write_text(json.dumps(way))
    times = {"images": [0, 1, 2], "ms": {"dense": [100, 101, 99], "routed": [20, 40, 60]}}
    (tmp_path / "times.json").write_text(json.dumps(times))
    text = report(tmp_path, ["dense", "routed"])
    line = next(line for line in text.splitlines() if line.startswith("| routed"))
    cells = [
        "routed",
        "19.0",
        "-1.00 (-1.00 to -1.00)",
        "50.0",
        "10.0",
        "20.0",
        "30.0",
        "10.0 %",
        "20.0 %",
        "4, 8",
        "0.30",
    ]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [*cells, "40.0", "58"]
    assert "routed: 20.0 ms and 5.00 for each window; as slow as the dense model with 16.0 windows" in text
    assert (tmp_path / "pareto.png").stat().st_size > 1000
