"""COCO metrics against pycocotools by hand, executed FLOPs against arithmetic, routing truth against a loop."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from mod_vision.eval import coco as ours
from mod_vision.eval.evaluate import score
from mod_vision.eval.flops import executed_gflops
from mod_vision.nn import MoDStage
from mod_vision.routing.truth import RoutingTruth, majority_cells
from mod_vision.yolo.images import load_model
from mod_vision.yolo.validate import Validation, validate

GAPPY = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}, {"id": 900, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [50, 20, 40, 40], "area": 1600, "iscrowd": 0},
    ],
}


def found(predictions, files=("a.jpg", "b.jpg")) -> Validation:
    return Validation(predictions=predictions, files=list(files), names={0: "cat", 1: "dog", 2: "unicorn"})


def test_box_ap_equals_pycocotools_by_hand(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(GAPPY))
    predictions = [
        {"file_name": "a.jpg", "category_id": 0, "bbox": [12, 10, 30, 30], "score": 0.9},
        {"file_name": "a.jpg", "category_id": 1, "bbox": [50, 25, 35, 40], "score": 0.8},
        {"file_name": "b.jpg", "category_id": 0, "bbox": [0, 0, 10, 10], "score": 0.95},
        {"file_name": "a.jpg", "category_id": 2, "bbox": [0, 0, 10, 10], "score": 0.99},
    ]
    box, mask = score(found(predictions), path, "detect")
    by_hand = COCO(str(path))
    ids, categories = {"a.jpg": 7, "b.jpg": 900}, {0: 3, 1: 90}
    results = [
        {**p, "image_id": ids[p["file_name"]], "category_id": categories[p["category_id"]]} for p in predictions[:3]
    ]
    scored = COCOeval(by_hand, by_hand.loadRes(results), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert list(box.values()) == scored.stats.tolist()
    assert 0 < box["AP"] < 1
    assert mask is None


def test_perfect_predictions_score_one_and_none_score_zero(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(GAPPY))
    perfect = [
        {"file_name": "a.jpg", "category_id": 0, "bbox": [10, 10, 30, 30], "score": 0.9},
        {"file_name": "a.jpg", "category_id": 1, "bbox": [50, 20, 40, 40], "score": 0.9},
    ]
    assert score(found(perfect), path, "detect")[0]["AP"] == pytest.approx(1.0)
    assert score(found([]), path, "detect")[0]["AP"] == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"images": []}', "lacks annotations, categories"),
        (json.dumps({**GAPPY, "images": GAPPY["images"][:1]}), "lacks 1 of 2 images of the data set, such as b.jpg"),
        (json.dumps({**GAPPY, "categories": [{"id": 1, "name": "tree"}]}), "no class of the model is a category"),
    ],
)
def test_bad_json_is_refused(tmp_path, content, message):
    path = tmp_path / "gt.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        score(found([]), path, "detect")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        score(found([]), tmp_path / "none.json", "detect")


def test_ground_truth_from_labels_has_the_objects_of_the_coco_json(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Ultralytics writes its runs folder here
    run = validate(
        load_model("yolo26n-mod-seg.yaml"), data=str(tiny_data), imgsz=96, batch=2, device="cpu", exist_ok=True
    )
    truth = ours.ground_truth_from_labels(run.labels, run.names)
    real = json.loads(run.annotations.read_text())
    names = set(run.files)
    ids = {image["id"]: image["file_name"] for image in real["images"] if image["file_name"] in names}
    real_boxes = [(ids[a["image_id"]], a["bbox"]) for a in real["annotations"] if a["image_id"] in ids]
    built = {image["id"]: image["file_name"] for image in truth["images"]}
    assert len(real_boxes) == len(truth["annotations"]) > 0

    def best_overlap(annotation):
        same_image = [box for name, box in real_boxes if name == built[annotation["image_id"]]]
        return mask_utils.iou([annotation["bbox"]], same_image, [0] * len(same_image)).max()

    overlaps = sorted(best_overlap(annotation) for annotation in truth["annotations"])
    assert overlaps[len(overlaps) // 10] > 0.9  # an object in several pieces keeps one of them in YOLO's format


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


def test_mask_sizes_are_those_of_the_masks_not_of_their_boxes(tmp_path):
    """An unmatched thin mask is a small object, though its box is large."""

    def rle(rows, cols):
        mask = np.zeros((80, 100), dtype=np.uint8, order="F")
        mask[rows, cols] = 1
        return {**mask_utils.encode(mask), "counts": mask_utils.encode(mask)["counts"].decode()}

    square, diagonal = rle(slice(10, 30), slice(10, 30)), rle(range(80), range(80))
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({**GAPPY, "annotations": [{**annotation, "segmentation": square}]}))
    predictions = [
        {"file_name": "a.jpg", "category_id": 0, "bbox": [0, 0, 80, 80], "segmentation": diagonal, "score": 0.9},
        {"file_name": "a.jpg", "category_id": 0, "bbox": [10, 10, 20, 20], "segmentation": square, "score": 0.8},
    ]
    _, mask = score(found(predictions), path, "segment")
    assert mask is not None
    assert mask["APs"] == pytest.approx(0.5, abs=0.01)


def test_boxes_without_masks_cannot_score_masks(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(GAPPY))
    with pytest.raises(ValueError, match="boxes without masks"):
        score(found([]), path, "segment")


def test_predictions_are_collected_once_in_a_folder_named_coco(tiny_data, tmp_path, monkeypatch):
    """Ultralytics treats a split file coco/val2017.txt specially and collects predictions by itself."""
    monkeypatch.chdir(tmp_path)
    photos = sorted((tiny_data.parent / "images" / "val").glob("*.jpg"))
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "val2017.txt").write_text("\n".join(map(str, photos)))
    data = yaml.safe_load(tiny_data.read_text())
    data |= {"path": str(tmp_path / "coco"), "train": "val2017.txt", "val": "val2017.txt"}
    (tmp_path / "coco.yaml").write_text(yaml.safe_dump(data))
    run = validate(load_model("yolo26n-mod.yaml"), data=str(tmp_path / "coco.yaml"), imgsz=64, device="cpu", conf=1e-9)
    per_image = Counter(p["file_name"] for p in run.predictions)
    assert set(per_image.values()) == {300}  # max_det, each once
