"""COCO JSONs that pycocotools' C code would crash on or never end with, or score as if they were right."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from conftest import FEW, SEEDS, normal
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from mod_vision.cli.main import main
from mod_vision.eval.accuracy.annotation_checks import check_polygons, check_runs
from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.eval.accuracy.ground_truth import from_json, from_labels
from mod_vision.yolo.run.validate import Validation

HEIGHT, WIDTH = 80, 100
TOTAL = HEIGHT * WIDTH
SQUARE = [10, 10, 40, 10, 40, 40, 10, 40]
ZIGZAG = [[0, 0, 99, 79] * 40_000]  # pycocotools would draw 40 million points
RUNS = mask_utils.frPyObjects([SQUARE], HEIGHT, WIDTH)[0]["counts"].decode()


def runs(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


def write(folder, image=None, text=None, **annotation):
    """Write a JSON of one object, whose text can be another than Python would write."""
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT} | (image or {})],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 42, "image_id": 7, "category_id": 3, "bbox": [10, 10, 30, 30], "segmentation": [SQUARE]} | annotation
        ],
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


def score(path):
    scorer = Scorer("segment", path)
    mask = {"size": [HEIGHT, WIDTH], "counts": RUNS}
    guess = {"file_name": "a.jpg", "category_id": 0, "score": 0.5, "bbox": [10, 10, 30, 30], "segmentation": mask}
    scorer.update(Validation(files=["a.jpg"], names={0: "cat"}), ["a.jpg"], [guess])
    return scorer.result()["mask"].stats["AP"]


@pytest.mark.parametrize(
    "mask",
    [
        [SQUARE],
        [[*SQUARE, 10]],  # half a point too many
        [[-5, -5, 40, 10, 40, 40, 10, 40]],
        runs([0, TOTAL]),
        runs([10, 0, 5, TOTAL - 15]),
        runs([10.0, TOTAL - 10.0]),
        runs(RUNS),
    ],
)
def test_what_pycocotools_takes_is_taken_and_gives_its_mask(tmp_path, mask):
    given = mask if isinstance(mask, dict) else mask_utils.merge(mask_utils.frPyObjects(mask, HEIGHT, WIDTH))
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        given = mask_utils.frPyObjects(mask, HEIGHT, WIDTH)
    truth = from_json(write(tmp_path, segmentation=mask), ["a.jpg"], masks=True)
    (annotation,) = truth.subset(["a.jpg"])["annotations"]
    assert np.array_equal(mask_utils.decode(annotation["segmentation"]), mask_utils.decode(given))
    assert annotation["area"] == mask_utils.area(given)


def test_a_right_one_scores(tmp_path):
    assert score(write(tmp_path)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[*SQUARE[:-1], 1e12]], r"has a polygon with the point \(10, 1e\+12\), far from its image of 100x80"),
        ([[*SQUARE[:-1], -1e8]], r"point \(10, -1e\+08\), far from its image"),
        ([[*SQUARE[:-1], float("nan")]], "has a polygon that is no list of finite numbers"),
        ([[*SQUARE[:-1], float("inf")]], "has a polygon that is no list of finite numbers"),
        ([[*SQUARE[:-1], "40"]], "has a polygon that is no list of finite numbers"),
        ([[*SQUARE[:-1], 10**400]], "has a polygon that is no list of finite numbers"),
        (ZIGZAG, "has an outline of 7,920,000 pixels, and at most 4,000,000 are drawn"),
        ("polygon", "has segmentation='polygon'; it must be polygons or run lengths"),
        (runs([10, 10]), "has a mask with counts of 20 pixels, and its size 100x80 has 8,000"),
        (runs([0, TOTAL + 1]), "counts of no whole pixels"),
        (runs([TOTAL, TOTAL]), "counts of 16,000 pixels"),
        (runs([-5, TOTAL + 5]), "counts of no whole pixels"),
        (runs([0.5, TOTAL - 0.5]), "counts of no whole pixels"),
        (runs([2**63, 2**63, TOTAL]), "counts of no whole pixels"),
        (runs([]), "counts of no whole pixels"),
        (runs({}), "counts of no whole pixels"),
        (runs(RUNS[:-2]), "counts of .* pixels"),
        (runs(RUNS + RUNS), "counts of .* pixels"),
        (runs("o" * 20), "counts of no whole pixels"),
        (runs("\0"), "counts of no whole pixels"),
        (runs("\N{SNOWMAN}"), "counts of no whole pixels"),
        (runs(""), "counts of no whole pixels"),
        (runs([0, TOTAL], (WIDTH, HEIGHT)), "has a mask of 80x100, and its image has 100x80"),
        (runs([0, 2**40], (2**20, 2**20)), "its mask has height 1048576 and width 1048576"),
        (runs([0, TOTAL], [HEIGHT]), r"has a mask of the size \[80\]; it must be \[height, width\]"),
        (runs([0, TOTAL], ["80", 100]), "its mask has height '80'"),
        (runs([0, 0], [0, 0]), "its mask has height 0 and width 0"),
    ],
)
def test_a_mask_that_would_crash_or_never_end_is_refused(tmp_path, mask, message):
    path = write(tmp_path, segmentation=mask)
    with pytest.raises(ValueError, match=f"{path}: annotation 42.* {message}") as error:
        score(path)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("box", [[1, 2, -3, 4], [1, 2, 3], [1, 2, 3, None], "abcd", [1, 2, 3, 10**400]])
def test_a_box_that_is_none_is_refused(tmp_path, box):
    with pytest.raises(ValueError, match=r"gt.json: annotation 42 has bbox=.*finite numbers, no side below 0"):
        score(write(tmp_path, bbox=box))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -1, "9", None])
def test_no_number_that_is_none_is_scored(tmp_path, number):
    for place in range(2, 4):
        box = [10, 10, 30, 30]
        box[place] = number
        with pytest.raises(ValueError, match=r"gt\.json: annotation 42 has bbox="):
            score(write(tmp_path, bbox=box))
    with pytest.raises(ValueError, match=r"gt\.json: annotation 42 has area="):
        score(write(tmp_path, area=number))


def test_other_parts_of_the_json_are_checked(tmp_path):
    with pytest.raises(ValueError, match="annotation 42 has iscrowd=7; it must be 0 or 1"):
        score(write(tmp_path, iscrowd=7))
    with pytest.raises(ValueError, match=r"annotation 42: its image has height 80 and width 1000000000"):
        score(write(tmp_path, image={"width": 10**9}))
    with pytest.raises(ValueError, match=r"images\[0\] has id=nan"):
        score(write(tmp_path, image={"id": float("nan")}))
    with pytest.raises(ValueError, match=r"a\.jpg has 100x80 pixels, and in the COCO JSON 80x100"):
        score(write(tmp_path, image={"width": HEIGHT, "height": WIDTH}))
    (tmp_path / "gt.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"gt.json is not valid JSON"):
        score(tmp_path / "gt.json")


def test_too_many_categories_are_refused_and_those_without_objects_cost_nothing(tmp_path):
    """COCO's tables take 97 KB for each: 20,000 would be 1.9 GB."""
    content = json.loads(write(tmp_path).read_text())
    for count, refused in ((300_000, True), (15_000, False)):
        content["categories"] = [{"id": 3, "name": "cat"}, *({"id": 10 + i, "name": f"c{i}"} for i in range(count))]
        (tmp_path / "gt.json").write_text(json.dumps(content))
        if refused:
            with pytest.raises(ValueError, match=r"gt.json has 300,001 classes, and at most 20,000 are taken"):
                score(tmp_path / "gt.json")
        else:
            tracemalloc.start()
            assert score(tmp_path / "gt.json") == pytest.approx(1)
            assert tracemalloc.get_traced_memory()[1] < 100e6
            tracemalloc.stop()


def test_a_label_that_would_take_gigabytes_to_draw_is_refused():
    zigzag = np.tile(np.array([[0, 0], [WIDTH, HEIGHT]], dtype=float), (40_000, 1))
    label = {
        "width": WIDTH, "height": HEIGHT, "cls": [0], "boxes": np.array([[0, 0, WIDTH, HEIGHT]]), "segments": [zigzag]
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"object 0 of a.jpg has an outline of"):
        from_labels([label], ["a.jpg"], {0: "cat"}).subset(["a.jpg"])


@given(seed=SEEDS, density=st.floats(0, 1))
@FEW
def test_compressed_counts_are_read_as_pycocotools_reads_them(seed, density):
    """Any mask passes, and with another last character it fills its image no more."""
    mask = (normal(seed, 37, 53).sigmoid() < density).byte().numpy()
    encoded = mask_utils.encode(np.asfortranarray(mask))
    text = encoded["counts"].decode()
    assert check_runs(runs(text, (37, 53)), (37, 53), "it")["counts"] == text
    other = text[:-1] + ("0" if text[-1] != "0" else "1")
    with pytest.raises(ValueError, match="it has a mask with counts"):
        check_runs(runs(other, (37, 53)), (37, 53), "it")


@given(points=st.lists(st.floats(-80, 160), min_size=6, max_size=12))
@FEW
def test_polygons_near_the_image_are_drawn_as_before(points):
    checked = check_polygons([points], (HEIGHT, WIDTH), "it")
    before, after = (mask_utils.frPyObjects([p], HEIGHT, WIDTH) for p in (points, checked[0]))
    assert np.array_equal(mask_utils.decode(before), mask_utils.decode(after))


def test_val_ends_with_one_line(tiny_data, tmp_path, capsys):
    """Not with a crash of the process."""
    source = json.loads(next((tiny_data.parent / "annotations").glob("*val*.json")).read_text())
    for annotation in source["annotations"]:
        annotation["segmentation"] = [[1e12, 0, 5, 5, 9, 0]]
    (tmp_path / "evil.json").write_text(json.dumps(source))
    words = [f"data={tiny_data}", "model=yolo26n-mod-hybrid-seg.pt", "imgsz=32", "threads=1", f"out={tmp_path / 'out'}"]
    assert main(["val", f"annotations={tmp_path / 'evil.json'}", *words]) == 1
    told = capsys.readouterr().err
    assert "evil.json: annotation " in told
    assert "has a polygon with the point (1e+12, 0), far from its image" in told
