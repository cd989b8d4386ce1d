"""COCO metrics against pycocotools by hand, by class and size and with crowds; their table, and what they come from."""

import json

import numpy as np
import pytest
from coco_splits import GAPPY, by_hand, random_split, score
from conftest import FEW, SEEDS
from hypothesis import given
from pycocotools import mask as mask_utils

from mod_vision.eval.accuracy.class_table import class_csv, class_rows, class_table
from mod_vision.eval.accuracy.coco import STATS
from mod_vision.eval.accuracy.records import Records


@pytest.mark.parametrize("engine", ["pycocotools", "faster"])
@pytest.mark.parametrize(
    "features",
    [{}, {"crowds": False, "empty": False}, {"crowds": False, "gaps": False}, {"empty": False, "gaps": False}],
    ids=["all", "gaps", "empty", "crowds"],
)
def test_all_numbers_equal_pycocotools_by_hand(tmp_path, features, engine):
    """Gaps in the ids, images without objects or predictions, crowds: together, and each without the others."""
    path, files, predictions = random_split(tmp_path, seed=len(features), **features)
    scores = score(predictions, path, "segment", files, engine, step=5)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        wanted = by_hand(path, predictions, kind)
        assert list(scores[name].stats.values()) == pytest.approx(wanted, abs=1e-12)
        assert list(scores[name].stats) == list(STATS)
        assert 0 < wanted[0] < 1
        for figures in scores[name].classes:
            alone = by_hand(path, predictions, kind, only=figures.id)
            got = [figures.ap, figures.ap50, figures.ap_small, figures.ap_medium, figures.ap_large]
            assert got == pytest.approx([alone[0], alone[1], *alone[3:6]], abs=1e-12)


def test_crowds_do_not_count_and_their_detections_neither(tmp_path):
    path, files, predictions = random_split(tmp_path, seed=3)
    content = json.loads(path.read_text())
    figures = {c.name: c for c in score(predictions, path, files=files)["box"].classes}
    for category in content["categories"]:
        mine = [a for a in content["annotations"] if a["category_id"] == category["id"] and not a["iscrowd"]]
        sizes = [
            sum(low <= a["area"] <= high for a in mine) for low, high in ((0, 32**2), (32**2, 96**2), (96**2, 1e9))
        ]
        got = figures[category["name"]]
        assert [got.objects, got.small, got.medium, got.large] == [len(mine), *sizes]
    assert any(a["iscrowd"] for a in content["annotations"])
    for annotation in content["annotations"]:
        annotation["iscrowd"], annotation["segmentation"] = 0, [[0, 0, 1, 0, 1, 1]]
    path.write_text(json.dumps(content))
    assert score(predictions, path, files=files)["box"].stats["AP"] != pytest.approx(
        score(predictions, random_split(tmp_path, seed=3)[0], files=files)["box"].stats["AP"]
    )


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
    assert score(predictions, path, "segment")["mask"].stats["APs"] == pytest.approx(0.5, abs=0.01)


def test_class_table_and_csv_show_the_classes(tmp_path):
    path, files, predictions = random_split(tmp_path, seed=1)
    rows = class_rows(score(predictions, path, "segment", files))
    assert [row["class"] for row in rows] == ["cat", "bird", "dog"]
    assert rows[1]["objects"] == 0
    assert rows[1]["box AP"] is None
    lines = class_csv(rows).splitlines()
    assert lines[0].startswith("class,objects,small,medium,large,box AP,box AP50")
    assert lines[2] == "bird,0,0,0,0" + 10 * ","
    table = class_table(rows, max_classes=1)
    most = max(rows, key=lambda row: row["objects"])
    assert f"{100 * most['mask AP50']:.1f}" in table
    assert table.endswith("... and 1 more classes with objects")
    assert "bird" not in table


@FEW
@given(seed=SEEDS)
def test_records_come_back_by_category_in_order_whether_in_memory_or_spilled(seed):
    generator = np.random.default_rng(seed)
    dtype = np.dtype([("category", "<i4"), ("value", "<u2")])
    batches = [np.zeros(int(generator.integers(0, 30)), dtype) for _ in range(8)]
    records = Records(dtype, limit=200)
    for i, batch in enumerate(batches):
        batch["category"], batch["value"] = generator.integers(0, 5, len(batch)), generator.integers(0, 999, len(batch))
        records.add(batch)
        if i == 3:
            records.of(2)  # reading in between changes nothing
    rows = np.concatenate(batches)
    for category in range(6):
        assert records.of(category).tolist() == rows[rows["category"] == category].tolist()
