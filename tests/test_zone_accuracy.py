"""Only what lies in a zone counts, by its centre: COCO's AP, lost objects, keypoints and rotated boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from drone_images import BOX, in_box, objects_of
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics import YOLO
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.ops import scale_boxes

import mod_vision
from mod_vision.conversion.job import with_router
from mod_vision.conversion.rows import score
from mod_vision.conversion.seen import look_at
from mod_vision.conversion.zone_objects import zone_filter_of
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.run.validate import validate

SIZE = (640, 512)


def as_coco(data: Path, names: dict[int, str]) -> dict[str, Any]:
    """The labels of `val` as a COCO JSON, box by box."""
    images, annotations = [], []
    for i, (name, rows) in enumerate(objects_of(data).items()):
        images.append({"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for c, *row in rows.tolist():
            x, y, w, h = np.array(row) * (*SIZE, *SIZE)
            box = {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": int(c), **box})
    categories = [{"id": i, "name": name} for i, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def central(entry: dict[str, Any]) -> bool:
    """Whether the centre of an annotation or detection lies in BOX."""
    x, y, w, h = entry["bbox"]
    return in_box((x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1])


def by_hand(truth: dict[str, Any], predictions: list[dict[str, Any]]) -> float:
    """COCO's AP by its own tools."""
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    evaluation = COCOeval(coco, coco.loadRes([{**p, "image_id": ids[p["file_name"]]} for p in predictions]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_accuracy_in_a_zone_is_that_of_coco_on_what_lies_in_it(dense, drones):
    """Of a dense model, by labels and by a COCO JSON; pictures are padded, zones are not."""
    everything: list[dict[str, Any]] = []
    validate(dense, lambda _, __, found: everything.extend(found), data=str(drones), imgsz=640, split="val", batch=1)
    truth = as_coco(drones, dense.names)
    within = {**truth, "annotations": [a for a in truth["annotations"] if central(a)]}
    expected = by_hand(within, [p for p in everything if central(p)])
    assert 0 < len(within["annotations"]) < len(truth["annotations"])
    assert abs(expected - by_hand(truth, everything)) > 1e-3, "the zone makes a difference"
    assert abs(expected - by_hand(within, everything)) > 1e-3, "false alarms outside do"
    where = (str(drones), 640, "val", "cpu", zone_filter_of(BOX))
    assert score(dense, *where).ap == pytest.approx(100 * expected, abs=1e-6)
    (drones.parent / "val.json").write_text(json.dumps(truth))
    drones.write_text(yaml.safe_dump(yaml.safe_load(drones.read_text()) | {"annotations": {"val": "val.json"}}))
    assert score(dense, *where).ap == pytest.approx(100 * expected, abs=1e-6)
    del truth["images"][0]["width"]
    (drones.parent / "val.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match="does not tell width and height of"):
        score(dense, *where)


def test_crowds_stay_for_detections_at_the_edge_of_the_zone():
    objects = [
        {"bbox": [0, 0, 10, 10], "iscrowd": 0},
        {"bbox": [0, 0, 10, 10], "iscrowd": 1},
        {"bbox": [40, 40, 10, 10], "iscrowd": 0},
    ]
    found = ZoneFilter([BOX]).content({"width": 100, "height": 80, "annotations": objects}, "a.jpg")
    assert found == {"width": 100, "height": 80, "annotations": objects[1:]}


def test_labels_outside_are_left_out_with_all_that_belongs_to_them():
    label = {
        "cls": np.array([[1.0], [2.0], [3.0]]),
        "bboxes": np.array([[0.5, 0.5, 0.1, 0.1], [0.1, 0.5, 0.9, 0.1], [0.7, 0.9, 0.1, 0.1]], np.float32),
        "segments": ["a", "b", "c"],
        "keypoints": np.arange(3),
        "im_file": "a.jpg",
    }
    (found,) = ZoneFilter([BOX]).labels([label])
    assert found["cls"].tolist() == [[1.0], [3.0]]
    assert (found["segments"], found["keypoints"].tolist(), found["im_file"]) == (["a", "c"], [0, 2], "a.jpg")
    assert len(label["cls"]) == 3, "what is given stays"
    (boxes,) = ZoneFilter([BOX]).labels([{**label, "segments": [], "keypoints": None}])
    assert (boxes["segments"], boxes["keypoints"], len(boxes["bboxes"])) == ([], None, 2)


def test_objects_outside_are_not_lost(dense, drones):
    """Neither in the table, nor where windows are chosen: as many count as lie in the zone."""
    zone_filter, routed = zone_filter_of(BOX), with_router(dense, "look")
    mod_vision.set_capacity(routed, 0.3)
    expected = [sum(in_box(x, y) for _, x, y, *_ in rows.tolist()) for rows in objects_of(drones).values()]
    seen = look_at(routed, str(drones), 192, "val", zone_filter)
    assert sorted(len(image.boxes) for image in seen) == sorted(expected)
    found = validate(routed, zone_filter=zone_filter, data=str(drones), imgsz=192, split="val", batch=1)
    assert found.lost.total["all"] == sum(expected) > 0


@pytest.fixture(params=["pose", "obb"])
def other(request, tmp_path) -> tuple[Path, YOLO]:
    """Two images with squares and their labels, and a model for keypoints or rotated boxes that sees some all over."""
    task, rng = request.param, np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (96, 160, 3), np.uint8)).save(tmp_path / f"images/{i}.png")
        lines = []
        for x, y in rng.uniform(0.1, 0.9, (9, 2)).tolist():
            corners = [(x - 0.05, y - 0.05), (x + 0.05, y - 0.05), (x + 0.05, y + 0.05), (x - 0.05, y + 0.05)]
            box = f"{x} {y} 0.1 0.1 {x} {y} 2" if task == "pose" else " ".join(f"{a} {b}" for a, b in corners)
            lines.append(f"0 {box}\n")
        (tmp_path / f"labels/{i}.txt").write_text("".join(lines))
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": {0: "square"}, "kpt_shape": [1, 3]}
    (tmp_path / "squares.yaml").write_text(yaml.safe_dump(data))
    d = {key: value for key, value in yaml_model_load(f"yolo11n-{task}.yaml").items() if key != "yaml_file"}
    (tmp_path / f"yolo11n-{task}.yaml").write_text(yaml.safe_dump({**d, "nc": 1, "kpt_shape": [1, 3]}))
    yolo = YOLO(tmp_path / f"yolo11n-{task}.yaml", task=task)
    for layer in yolo.model.model[-1].cv3:
        torch.nn.init.constant_(layer[-1].bias, 0.0)
    return tmp_path / "squares.yaml", yolo


def test_keypoints_and_rotated_boxes_count_in_the_zone(other, monkeypatch):
    """The same detections as without a zone, those whose centre lies in it, and the same of the objects."""
    data, yolo = other
    base, told = {"pose": PoseValidator, "obb": OBBValidator}[yolo.task], []
    own = base.update_metrics

    def update(self: Any, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        told.append((preds[0]["bboxes"], len(batch["cls"]), batch))
        own(self, preds, batch)

    monkeypatch.setattr(base, "update_metrics", update)
    for zone_filter in (None, zone_filter_of(BOX)):
        score(yolo, str(data), 128, "val", "cpu", zone_filter)
    labels = [np.loadtxt(file)[:, 1:] for file in sorted((data.parent / "labels").glob("*.txt"))]
    for before, after, label in zip(told[:2], told[2:], labels, strict=True):
        rotated, batch = yolo.task == "obb", before[2]
        shape, place = batch["ori_shape"][0], {"ratio_pad": batch["ratio_pad"][0], "xywh": rotated}
        boxes = scale_boxes(batch["img"].shape[2:], before[0][:, :4].clone(), shape, **place)
        centres = boxes[:, :2] if rotated else (boxes[:, :2] + boxes[:, 2:]) / 2
        kept = [in_box(x / 160, y / 96) for x, y in centres.tolist()]
        assert torch.equal(after[0], before[0][kept])
        assert 0 < len(after[0]) < len(before[0])
        middles = label[:, :2] if yolo.task == "pose" else label.reshape(len(label), 4, 2).mean(1)
        assert after[1] == sum(in_box(x, y) for x, y in middles.tolist()) < before[1] == 9
