"""A conversion with a zone counts what lies in it, and nothing else; and what is said of empty images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics import YOLO
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.ops import scale_boxes

import mod_vision
from mod_vision.cli.main import main
from mod_vision.conversion.convert import ALL, _rows
from mod_vision.conversion.empty import Timed, time_val
from mod_vision.conversion.in_zone import inside_of
from mod_vision.conversion.job import with_router
from mod_vision.conversion.rows import Accuracy, score
from mod_vision.conversion.seen import look_at
from mod_vision.conversion.timing import Time, WindowTime
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.windowed import without_windows
from mod_vision.resources import resource_dir
from mod_vision.routing.placing import gains_of
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.data.inside import Inside
from mod_vision.yolo.data.zones import WHOLE
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_images
from mod_vision.yolo.run.letterbox import forward_letterboxed
from mod_vision.yolo.run.validate import validate

RUN = RunSettings(imgsz=192, threads=1)
BOX = [[0.25, 0.25], [0.75, 0.25], [0.75, 1.0], [0.25, 1.0]]
HITUAV = resource_dir("assets") / "hituav"
SIZE = (640, 512)


def in_box(x: float, y: float) -> bool:
    """Whether a point, as shares of the picture, lies in BOX."""
    return 0.25 <= x < 0.75 and y >= 0.25


@pytest.fixture(scope="module")
def dense() -> YOLO:
    return without_windows(load_model("yolo26n-mod-hituav.pt"))


@pytest.fixture
def drones(tmp_path) -> Path:
    """A data set of 24 + 6 drone images."""
    for split, count in (("train", 24), ("val", 6)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for image in sorted((HITUAV / "images" / split).glob("*.jpg"))[::4][:count]:
            shutil.copy(image, tmp_path / "images" / split)
            shutil.copy(HITUAV / "labels" / split / f"{image.stem}.txt", tmp_path / "labels" / split)
    data = yaml.safe_load((HITUAV / "mod-hituav.yaml").read_text()) | {"path": str(tmp_path)}
    (tmp_path / "drones.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "drones.yaml"


def objects_of(data: Path) -> dict[str, np.ndarray]:
    """The lines of the label files of `val` by the names of the images."""
    files = sorted((data.parent / "labels" / "val").glob("*.txt"))
    return {f"{file.stem}.jpg": np.array(file.read_text().split(), float).reshape(-1, 5) for file in files}


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


# ---------------------------------------------------------------------------------------------------------- accuracy


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
    where = (str(drones), 640, "val", "cpu", inside_of(BOX))
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
    found = Inside([BOX]).content({"width": 100, "height": 80, "annotations": objects}, "a.jpg")
    assert found == {"width": 100, "height": 80, "annotations": objects[1:]}


def test_labels_outside_are_left_out_with_all_that_belongs_to_them():
    label = {
        "cls": np.array([[1.0], [2.0], [3.0]]),
        "bboxes": np.array([[0.5, 0.5, 0.1, 0.1], [0.1, 0.5, 0.9, 0.1], [0.7, 0.9, 0.1, 0.1]], np.float32),
        "segments": ["a", "b", "c"],
        "keypoints": np.arange(3),
        "im_file": "a.jpg",
    }
    (found,) = Inside([BOX]).labels([label])
    assert found["cls"].tolist() == [[1.0], [3.0]]
    assert (found["segments"], found["keypoints"].tolist(), found["im_file"]) == (["a", "c"], [0, 2], "a.jpg")
    assert len(label["cls"]) == 3, "what is given stays"
    (boxes,) = Inside([BOX]).labels([{**label, "segments": [], "keypoints": None}])
    assert (boxes["segments"], boxes["keypoints"], len(boxes["bboxes"])) == ([], None, 2)


def test_objects_outside_are_not_lost(dense, drones):
    """Neither in the table, nor where windows are chosen: as many count as lie in the zone."""
    inside, routed = inside_of(BOX), with_router(dense, "look")
    mod_vision.set_capacity(routed, 0.3)
    expected = [sum(in_box(x, y) for _, x, y, *_ in rows.tolist()) for rows in objects_of(drones).values()]
    seen = look_at(routed, str(drones), 192, "val", inside)
    assert sorted(len(image.boxes) for image in seen) == sorted(expected)
    found = validate(routed, inside=inside, data=str(drones), imgsz=192, split="val", batch=1)
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
    for inside in (None, inside_of(BOX)):
        score(yolo, str(data), 128, "val", "cpu", inside)
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


# ------------------------------------------------------------------------------------------------------- conversions


def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take times for what they are not, so that what is chosen does not hang on them."""

    def windows(_: Any, sizes: Any, coarse: Any, __: Any) -> Any:
        return 20.0, {(size, share): WindowTime(3.0, 2.0 + size / 100) for size in sizes for share in coarse}

    def predictions(models: Any, _: Any) -> Any:
        return dict.fromkeys(models, Time(20.0, 20.0, 1.0))

    monkeypatch.setattr("mod_vision.conversion.winners.time_windows", windows)
    for module in ("winners", "convert"):
        monkeypatch.setattr(f"mod_vision.conversion.{module}.time_predictions", predictions)


def test_the_whole_picture_as_a_zone_gives_the_same_table(dense, drones, tmp_path, monkeypatch, capsys):
    """And where the zone is a part, what lies outside of it has no part in the choice either."""
    same_times(monkeypatch)
    chosen_by: list[tuple[int, list[Any]]] = []

    def looked(*given: Any, **named: Any) -> Any:
        seen = look_at(*given, **named)
        chosen_by.append((sum(len(image.boxes) for image in seen), []))
        return seen

    def scored(*given: Any) -> Any:
        chosen_by[-1][1].append(given[5])
        return score(*given)

    monkeypatch.setattr("mod_vision.conversion.winners.look_at", looked)
    monkeypatch.setattr("mod_vision.conversion.winners.score", scored)
    found = []
    for zone in (None, WHOLE, BOX):
        torch.manual_seed(0)
        folder = tmp_path / f"work{len(found)}"
        done = mod_vision.convert(dense, str(drones), Wanted(), True, ["look"], 2, RUN, folder, zone)
        found.append({row.name: row.accuracy for row in done.rows})
    whole, box = (own.pop(ALL) for own in found[1:])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert whole.ap == found[0]["dense at 192 px"].ap, "of the whole picture, all of the zone is the dense model"
    assert box.lost == 0
    counts = re.findall(r"in the zone are (\d+) of (\d+) labelled objects of the images kept", capsys.readouterr().out)
    assert [str(number) for number, _ in chosen_by[1:]] == [within for within, _ in counts]
    assert int(counts[1][0]) < int(counts[1][1]) == chosen_by[0][0]
    scored_in = [{inside and json.dumps(inside.zone) for inside in used} for _, used in chosen_by]
    assert scored_in == [{None}, {json.dumps(WHOLE)}, {json.dumps([BOX])}]
    assert head_of(done.model.model).entry.zone_sums is not None
    assert max(done.timed.windows) > 0


def test_all_of_the_zone_is_timed_where_the_conversion_runs(dense, drones, monkeypatch):
    """The model of that row is built anew."""
    timed = {}

    def times(models: Any, photos: Any) -> Any:
        timed.update({name: next(yolo.model.parameters()).device.type for name, (yolo, _) in models.items()})
        return {name: Time(1.0, 1.0, 1.0) for name in models}

    monkeypatch.setattr("mod_vision.conversion.convert.time_predictions", times)
    monkeypatch.setattr("mod_vision.conversion.convert.score", lambda *_: Accuracy(1.0, 1.0))
    kept = sorted((drones.parent / "images" / "val").glob("*.jpg"))
    job = SimpleNamespace(
        dense=dense,
        parts=SimpleNamespace(kept=kept, data=str(drones)),
        run=RunSettings(imgsz=192, device="meta", threads=torch.get_num_threads()),
        progress=SimpleNamespace(once=lambda name, find: find()),
        inside=SimpleNamespace(zone=[BOX]),
    )
    _rows(job, {}, {})
    assert timed[ALL] == "meta", "where no parameter is by itself"


def test_a_converted_model_keeps_its_zone_and_a_stopped_one_goes_on_in_it(dense, drones, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dense.save("dense.pt")
    (tmp_path / "gate.json").write_text(json.dumps([[160, 128], [480, 128], [480, 512], [160, 512]]))
    words = ["convert", "model=dense.pt", f"data={drones}", "imgsz=192", "steps=2", "router=look", "speedup=1.2"]
    words += ["threads=1", "force=True"]
    zone = ["zone=gate.json", "size=640x512"]

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mod_vision.conversion.convert.score", stop)
        assert main([*words, *zone]) == 130
    shutil.copytree("dense-mod-convert", "kept")
    capsys.readouterr()
    assert main([*words, *zone]) == 0
    told = capsys.readouterr().out
    assert "going on with what is in dense-mod-convert" in told
    objects = np.concatenate(list(objects_of(drones).values()))[:, 1:3].tolist()
    assert f"{sum(in_box(x, y) for x, y in objects)} of {len(objects)} labelled objects of val" in told
    assert re.search(r"\nempty: .* of val's 6 images .*; the mean of all 6 is [\d.]+ ms\n", told)
    assert YOLO("dense-mod.pt").model.yaml["mod"]["windows"]["zone"] == [[BOX]]
    for image in sorted((drones.parent / "images" / "val").glob("*.jpg")):
        (result,) = YOLO("dense-mod.pt").predict(image, imgsz=192, conf=0.01, verbose=False)
        assert all(0.23 < x < 0.77 and y > 0.23 for x, y, *_ in result.boxes.xywhn.tolist())
    Path("kept").rename("dense-mod-convert")
    monkeypatch.setattr("mod_vision.conversion.convert.fit_router", stop)
    assert main([*words, "zone=[[0, 0], [1, 0], [1, 1]]"]) == 130
    assert "going on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        (
            ["zone=gate.json,gate.json"],
            "convert takes one zone, for all photos of the data set; got zones for 2 streams",
        ),
        (["zone=[[[[0,0],[1,0],[1,1]]],null]"], "convert takes one zone"),
        (["zone=none.json"], "zone=none.json does not exist"),
        (["zone=[[0, 0], [1, 1]]"], "a polygon has three points at least"),
        (["zone=[[0, 0], [900, 0], [900, 500]]"], "Give its size=WIDTHxHEIGHT"),
        (["zone=[[0, 0], [900, 0], [900, 500]]", "size=wide"], "size=wide is no size"),
        (["zone=[[0, 0], [900, 0], [900, 500]]", "size=640x512"], "a point lies outside of the picture"),
        (["size=640x512"], "size=640x512 is that of the pictures of a zone; add zone=, or did you mean imgsz=?"),
        (["zone=[[0, 0], [1, 0"], "brackets or quotes are not closed"),
    ],
)
def test_bad_zones_are_refused_and_nothing_is_written(dense, drones, tmp_path, monkeypatch, capsys, zone, told):
    monkeypatch.chdir(tmp_path)
    dense.save("dense.pt")
    (tmp_path / "gate.json").write_text(json.dumps(BOX))
    before = sorted(tmp_path.iterdir())
    assert main(["convert", "model=dense.pt", f"data={drones}", *zone]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert told in said[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("split", "what"), [("val", "val"), ("train", "the images kept aside from training")])
def test_a_zone_without_labelled_objects_is_refused_before_anything_is_trained(
    dense, drones, tmp_path, monkeypatch, split, what
):
    for file in (drones.parent / "labels" / split).glob("*.txt"):
        file.write_text("0 0.1 0.1 0.05 0.05\n")
    monkeypatch.setattr("mod_vision.conversion.convert.fit_router", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=rf"none of the \d+ labelled objects of {what} lies in the zone"):
        mod_vision.convert(dense, str(drones), routers=["look"], run=RUN, folder=tmp_path / "work", zone=BOX)


# ------------------------------------------------------------------------------------------------------ empty images


@pytest.mark.parametrize(
    ("timed", "told"),
    [
        (
            Timed([10.0, 40.0, 12.0, 50.0], [0, 3, 0, 4], 4),
            "empty: 2 of val's 4 images (50 %) get no window by * and take 11.0 ms (median); the mean of all 4 is "
            "28.0 ms",
        ),
        (
            Timed([40.0, 50.0], [3, 4], 9),
            "empty: each of 2 images of val gets a window by *; the mean of all 2 is 45.0 ms; val has 9 images, of "
            "which these were timed",
        ),
        (
            Timed([10.0, 40.0], [0, 3], 9),
            "empty: 1 of 2 images of val (50 %) get no window by * and take 10.0 ms (median); the mean of all 2 is "
            "25.0 ms; val has 9 images, of which these were timed",
        ),
    ],
)
def test_what_is_said_of_empty_images(timed, told):
    assert timed.sentence().startswith(told)


def test_empty_images_are_those_that_get_no_window(drones):
    """With a threshold between what images are worth, half of them are empty."""
    routed = load_model("yolo26n-mod-hituav.pt")
    entry, worth = head_of(routed.model).entry, []
    for photo in read_images(sorted((drones.parent / "images" / "val").glob("*.jpg"))):
        forward_letterboxed(routed.model, photo, 384)
        worth.append(float(gains_of(entry.plan)[0]))
    worth.sort()
    assert worth[2] < worth[3]
    for threshold, empty in ((0.0, 0), ((worth[2] + worth[3]) / 2, 3), (worth[-1] + 1, 6)):
        entry.set_threshold(threshold)
        timed = time_val(routed, str(drones), 384)
        assert (timed.images, len(timed.ms), min(timed.ms) > 0) == (6, 6, True)
        assert timed.windows.count(0) == empty
