"""Capacity sweeps and comparisons: the paired bootstrap against pycocotools on copied images, files and messages."""

import copy
import csv
import json

import numpy as np
import pytest
from coco_splits import CATEGORIES, GAPPY, random_split, score
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mod_vision.cli.main import main
from mod_vision.eval.accuracy.bootstrap import difference, draw_resamples, resampled_ap
from mod_vision.eval.compare import Comparison
from mod_vision.eval.cost.latency import Latency
from mod_vision.eval.evaluate import Cost, Evaluation
from mod_vision.eval.sweep import evaluate_capacities, on_front, save_sweep, sweep_table
from mod_vision.routing.recall import RouterRecall
from mod_vision.run_settings import ScoreSettings
from mod_vision.viz.pareto_plot import draw_sweep
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import save
from mod_vision.yolo.model.loading import load_model

WORDS = ["imgsz=96", "batch=4", "threads=1"]


def slow_ap(content, predictions, kind, draws):
    """Return pycocotools' AP of a split in which images stand as often as they were drawn."""
    by_id = {image["id"]: image for image in content["images"]}
    images, annotations, results = [], [], []
    for id_, times in zip(sorted(by_id), draws.tolist(), strict=True):
        for _ in range(times):
            new = len(images) + 1
            images.append({**by_id[id_], "id": new})
            for annotation in (a for a in content["annotations"] if a["image_id"] == id_):
                annotations.append({**copy.deepcopy(annotation), "id": len(annotations) + 1, "image_id": new})
            for p in (
                p for p in predictions if p["file_name"] == by_id[id_]["file_name"] and p["category_id"] in CATEGORIES
            ):
                key = "bbox" if kind == "bbox" else "segmentation"
                what = {"score": p["score"], key: copy.deepcopy(p[key])}
                results.append({"image_id": new, "category_id": CATEGORIES[p["category_id"]], **what})
    coco = COCO()
    coco.dataset = {**content, "images": images, "annotations": annotations}
    coco.createIndex()
    scored = COCOeval(coco, coco.loadRes(results), kind)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored.stats[0]


@pytest.mark.parametrize(("kind", "name"), [("bbox", "box"), ("segm", "mask")])
def test_resampled_ap_equals_pycocotools_on_copied_images(tmp_path, kind, name):
    path, files, predictions = random_split(tmp_path, seed=7, decimals=9)
    content = json.loads(path.read_text())
    part = score(predictions, path, "segment", files)[name]
    counts = draw_resamples(len(files), 6, seed=3)
    assert counts.sum(axis=1).tolist() == [len(files)] * 6
    counts[0] = 1  # the split itself
    ap = resampled_ap(part.matches, range(len(part.classes)), counts)
    assert ap == pytest.approx([slow_ap(content, predictions, kind, draws) for draws in counts], abs=1e-12)
    assert ap[0] == pytest.approx(part.stats["AP"], abs=1e-12)
    assert len(set(ap.tolist())) > 3


def test_resamples_repeat_with_the_seed_and_intervals_hold_the_difference():
    assert np.array_equal(draw_resamples(20, 5, 1), draw_resamples(20, 5, 1))
    assert not np.array_equal(draw_resamples(20, 5, 1), draw_resamples(20, 5, 2))
    ap = np.linspace(0.0, 1.0, 1001)
    found = difference(0.5, ap, np.zeros(1001))
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert str(found) == "+50.00 (+2.50 to +97.50)"
    assert not found.includes_zero
    assert difference(0.0, ap, ap[::-1]).includes_zero


def test_val_sweeps_capacities(tiny_data, tmp_path, capsys):
    words = [f"data={tiny_data}", f"out={tmp_path}", *WORDS]
    assert main(["val", "model=yolo26n-mod-hybrid-seg.pt", "capacity=0.25,1", *words]) == 0
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [part["capacity"] for part in content] == [1.0, 0.25]
    assert content[0]["cost"]["gflops"] > content[1]["cost"]["gflops"]
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for row, part in zip(rows, content, strict=True):
        assert float(row["capacity"]) == part["capacity"]
        assert float(row["gflops"]) == part["cost"]["gflops"]
        assert float(row["mask AP50"]) == part["mask"]["AP50"]
        assert float(row["latency_ms_median"]) == part["cost"]["latency"][0]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "Pareto front of AP against latency" in capsys.readouterr().out
    run = ScoreSettings(96, "cpu", batch=4)
    alone = evaluate_capacities("yolo26n-mod-hybrid-seg.pt", str(tiny_data), [0.25], run, project=str(tmp_path))[0.25]
    assert alone.box == content[1]["box"]
    assert main(["val", "model=yolo26n-mod-hybrid-seg.pt", "capacity=1,1.5", *words]) == 1
    assert "1.5" in capsys.readouterr().err


def without_objects(folder):
    """Return what scores on a split without any object."""
    (folder / "gt.json").write_text(json.dumps({**GAPPY, "annotations": []}))
    scores = score([], folder / "gt.json", "segment")
    assert set(scores["box"].stats.values()) == {-1.0}
    cost = Cost(1.0, 2.0, Latency(3.0, 2.0, 4.0), Latency(6.0, 5.0, 7.0), 1, "cpu")
    return Evaluation(scores, cost, RouterRecall(), {}, {}, ["a.jpg", "b.jpg"], {0: "cat", 1: "dog"})


def test_no_objects_are_a_dash_an_empty_cell_and_no_point(tmp_path, monkeypatch):
    found = without_objects(tmp_path)
    panels = []
    monkeypatch.setattr("mod_vision.viz.pareto_plot.draw_pareto", lambda drawn, path: panels.extend(drawn))
    draw_sweep({1.0: found, 0.5: found}, "a", tmp_path / "a.png")
    assert [panel.marks for panel in panels] == [[]] * 4
    assert not any(on_front({1.0: found}, "box", "latency"))
    save_sweep({1.0: found}, tmp_path)
    with (tmp_path / "sweep.csv").open() as lines:
        (row,) = csv.DictReader(lines)
    assert {row[key] for key in row if key.startswith(("box", "mask"))} == {""}
    assert json.loads((tmp_path / "sweep.json").read_text())[0]["box"]["AP"] == -1
    line = found.report().splitlines()[1]
    assert line.split()[:5] == ["box", "AP", "-", "AP50", "-"]
    for table in (sweep_table({1.0: found}), Comparison({"a.pt": found}, [], 10, 1).table()):
        assert table.splitlines()[1].split().count("-") == 10
        assert "-100" not in table


def test_a_picture_without_points_is_drawn(tmp_path):
    draw_sweep({1.0: without_objects(tmp_path)}, "a", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_compare_writes_figures_and_paired_intervals(tiny_data, tmp_path, capsys):
    other = load_model("yolo26n-mod-hybrid-seg.pt")
    set_capacity(other, 0.1)
    save(other, tmp_path / "other.pt", "yolo26n-mod-hybrid-seg.pt")
    words = [f"data={tiny_data}", f"out={tmp_path}", *WORDS]
    models = f"models=yolo26n-mod-hybrid-seg.pt,{tmp_path / 'other.pt'}"
    assert main(["val", models, *words]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    first, second = found["models"].values()
    assert [pair["kind"] for pair in found["differences"]] == ["box", "mask"]
    for pair in found["differences"]:
        assert pair["ap"]["observed"] == pytest.approx(second[pair["kind"]]["AP"] - first[pair["kind"]]["AP"])
        assert pair["ap"]["low"] <= pair["ap"]["high"]
        assert pair["ap"]["includes_zero"] == (pair["ap"]["low"] <= 0 <= pair["ap"]["high"])
    assert first["cost"]["gflops"] > second["cost"]["gflops"]
    said = capsys.readouterr().out
    assert "95 % of 1000 resamples of the 4 images, seed 1" in said
    assert said.count("includes 0: yes") == sum(pair["ap"]["includes_zero"] for pair in found["differences"])
    assert "includes 0: no" in said or said.count("includes 0: yes") == 2
    assert "warning: 4 images are too few for resamples to show how far AP moves" in said
    assert main(["val", "models=yolo26n-mod-hybrid-seg.pt", *words]) == 1
    assert "give at least two different ones" in capsys.readouterr().err
