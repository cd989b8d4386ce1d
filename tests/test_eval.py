"""Executed FLOPs against arithmetic, object recall of the router against a loop, predictions collected once."""

import json
import shutil
from collections import Counter

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mod_vision.cli.main import main
from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.image_cost import ImageCosts
from mod_vision.eval.evaluate import evaluate_model
from mod_vision.measure import Measure
from mod_vision.nn import MoDStage
from mod_vision.routing import make_plan
from mod_vision.routing.other_images import OtherImages
from mod_vision.routing.recall import RouterRecall, majority_cells
from mod_vision.routing.statistics import RouteStatistics
from mod_vision.run_settings import ScoreSettings
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import validate


@settings(max_examples=10, deadline=None)
@given(height=st.integers(2, 5), width=st.integers(2, 5), seed=st.integers(0, 99))
def test_recall_counts_like_a_loop(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    kept, objects = (torch.rand(3, height, width, generator=generator) > 0.5 for _ in range(2))
    recall = RouterRecall()
    for i in range(3):
        recall.update("stage", kept[i : i + 1], {"objects": objects[i : i + 1], "rest": ~objects[i : i + 1]})
    cells = list(zip(kept.flatten().tolist(), objects.flatten().tolist(), strict=True))
    hits = [k for k, o in cells if o]
    if hits:
        assert recall.result().routed["stage"]["objects"] == pytest.approx(sum(hits) / len(hits))
    assert recall.result().random["stage"] == pytest.approx(sum(k for k, _ in cells) / len(cells))
    fitting = sum(min(int(kept[i].sum()), int(objects[i].sum())) for i in range(3))
    if hits:
        assert recall.result().best["stage"]["objects"] == pytest.approx(fitting / len(hits))
        assert recall.result().routed["stage"]["objects"] <= recall.result().best["stage"]["objects"]


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 9), seed=st.integers(0, 99), batch=st.integers(1, 4))
def test_the_route_of_another_image_like_a_loop_over_pairs(images, seed, batch):
    """Images of two shapes: one fills the map, the other leaves the last row to padding."""
    generator = torch.Generator().manual_seed(seed)
    kept, objects = (torch.rand(images, 3, 4, generator=generator) > 0.5 for _ in range(2))
    low = torch.rand(images, generator=generator) > 0.5
    inside = torch.ones(images, 3, 4, dtype=torch.bool)
    inside[low, 2] = False
    groups = {"objects": objects & inside, "rest": ~objects & inside, "cat": objects & inside & (low[:, None, None])}
    recall = RouterRecall()
    for i in range(0, images, batch):
        recall.update("stage", kept[i : i + batch], {name: tokens[i : i + batch] for name, tokens in groups.items()})
    found = recall.result().other_image.get("stage", {})
    for name, tokens in groups.items():
        routed, total = [], 0
        for i in range(images):
            others = [j for j in range(images) if j != i and low[j] == low[i]]
            if others:
                routed.append(sum(int((kept[j] & tokens[i]).sum()) for j in others) / len(others))
                total += int(tokens[i].sum())
        assert found.get(name) == (pytest.approx(sum(routed) / total) if total else None)
    repeated = sum(int(part.sum()) for part in (low, ~low) if part.sum() > 1)
    assert f"which {repeated} of {images} images have" in recall.table()


def test_a_router_that_knows_only_places_routes_as_much_with_another_image():
    """Alike in all images; one that follows the objects does not."""
    objects = torch.zeros(2, 2, 2, dtype=torch.bool)
    objects[0, 0], objects[1, 1] = True, True
    groups = {"objects": objects, "rest": ~objects}
    places, content = RouterRecall(), RouterRecall()
    places.update("stage", torch.tensor([[[True, True], [False, False]]]).expand(2, 2, 2), groups)
    content.update("stage", objects, groups)
    assert places.result().other_image == places.result().routed == {"stage": {"objects": 0.5, "rest": 0.5}}
    assert content.result().routed == {"stage": {"objects": 1.0, "rest": 0.0}}
    assert content.result().other_image == {"stage": {"objects": 0.0, "rest": 1.0}}


def test_the_route_of_another_image_of_very_many():
    """There are more pairs than 32 bits count."""
    ones = torch.ones(50_000, 1, 2, dtype=torch.bool)
    recall = RouterRecall()
    recall.update("stage", ones, {"objects": ones, "rest": ~ones})
    assert recall.result().other_image == {"stage": {"objects": 1.0}}


def test_val_prints_and_saves_the_route_of_another_image(tmp_path, capsys):
    words = ("model=yolo26n-mod-hybrid-seg.pt", "data=mod-open.yaml", "imgsz=160", "threads=1", f"out={tmp_path}")
    assert main(["val", *words]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "evaluation.json").read_text())
    other, random = found["routed_share_other_image"], found["routed_share_random"]
    for layer, shares in found["routed_share"].items():
        assert random[layer] < other[layer]["objects"] < shares["objects"], "part of its gain is where objects lie"
        (line,) = (line for line in out.splitlines() if line.startswith(f"{layer:<12}objects"))
        assert f"{100 * other[layer]['objects']:.1f}%" in line
    assert " of 22 images have" in out


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


def nested(tiny_data, folder, splits=("a", "b")):
    """Write the same photos and labels into folders beside each other, and return the data YAML."""
    for kind in ("images", "labels"):
        for name in splits:
            shutil.copytree(tiny_data.parent / kind / "val", folder / kind / "val" / name)
    data = {**yaml.safe_load(tiny_data.read_text()), "path": str(folder), "train": "images/val", "val": "images/val"}
    del data["annotations"]
    (folder / "nested.yaml").write_text(yaml.safe_dump(data))
    return folder / "nested.yaml"


def test_equal_file_names_in_folders_are_different_images(tiny_data, tmp_path):
    run = ScoreSettings(96, "cpu", batch=4)
    found = evaluate_model("yolo26n-mod-hybrid-seg.pt", str(nested(tiny_data, tmp_path)), run, project=str(tmp_path))
    photos = sorted(photo.name for photo in (tiny_data.parent / "images" / "val").glob("*.jpg"))
    assert sorted(found.files) == [f"{folder}/{name}" for folder in "ab" for name in photos]
    assert next(iter(found.as_dict()["routed_share_by_image"].values())).keys() == set(found.files)
    data = yaml.safe_load(tiny_data.read_text())
    del data["annotations"]
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump({**data, "path": str(tiny_data.parent)}))
    flat = evaluate_model("yolo26n-mod-hybrid-seg.pt", str(tmp_path / "flat.yaml"), run, project=str(tmp_path))
    assert sorted(flat.files) == photos
    assert found.objects_scored == 2 * flat.objects_scored > 0
    assert found.box["AR100"] == pytest.approx(flat.box["AR100"])  # each image is there twice
    assert flat.box["AR100"] > 0


def test_an_image_listed_twice_and_dense_maps_by_a_shared_name_are_refused(tiny_data, tmp_path):
    data = nested(tiny_data, tmp_path)
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "stuff": {"val": "stuff"}, "stuff_names": {0: "sky"}}))
    with pytest.raises(ValueError, match=r"dense annotations \(stuff:\) go by file name"):
        validate(load_model("yolo26n-mod-hybrid.yaml"), data=str(data), imgsz=64, device="cpu")
    photo = next((tmp_path / "images" / "val" / "a").iterdir())
    (tmp_path / "twice.txt").write_text(f"{photo}\n{photo}\n")
    data.write_text(yaml.safe_dump({**content, "val": "twice.txt"}))
    with pytest.raises(ValueError, match=f"lists images twice, such as {photo.name}"):
        validate(load_model("yolo26n-mod-hybrid.yaml"), data=str(data), imgsz=64, device="cpu")


def test_a_split_without_objects_is_said_and_not_compared(tiny_data, tmp_path, capsys):
    data = nested(tiny_data, tmp_path, splits=("a",))
    for file in (tmp_path / "labels" / "val" / "a").iterdir():
        file.write_text("")
    words = [f"data={data}", "imgsz=64", "threads=1", f"out={tmp_path}"]
    assert main(["val", "model=yolo26n-mod-hybrid.yaml", *words]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]
    assert said == [f"warning: the split 'val' of {data} has no object to score, so there is no AP"]
    assert main(["val", "models=yolo26n-mod-hybrid.yaml,yolo26n-mod-hybrid-seg.pt", *words]) == 1
    assert "the split has no object, so there is no difference to tell" in capsys.readouterr().err


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
        load_model("yolo26n-mod-hybrid.yaml"),
        receive,
        data=str(tmp_path / "coco.yaml"),
        imgsz=64,
        device="cpu",
        conf=1e-9,
    )
    assert set(per_image.values()) == {300}  # max_det, each once


def test_val_keeps_several_labels_of_an_anchor_and_predict_one(tiny_data, photos, tmp_path):
    """As docs/evaluation.md says; boxes equal to the digit are of one anchor, unless they are the whole image."""
    repeated = Counter()

    def receive(found, files, predictions):
        boxes = [(p["file_name"], *p["bbox"]) for p in predictions]
        repeated["val"] += len(boxes) - len(set(boxes))

    validate(load_model("yolo26n-mod-hybrid-seg.pt"), receive, data=str(tiny_data), imgsz=160, device="cpu")
    for name, nms in (("predict", None), ("predict without NMS", False)):
        for photo in photos[:4]:
            words = {"imgsz": 160, "conf": 0.001, "nms": nms, "device": "cpu", "verbose": False}
            result = load_model("yolo26n-mod-hybrid-seg.pt").predict(photo, **words)[0]
            height, width = result.orig_shape
            boxes = [tuple(box) for box in result.boxes.xyxy.tolist() if box != [0, 0, width, height]]
            repeated[name] += len(boxes) - len(set(boxes))
    assert repeated["val"] > 0
    assert repeated["predict"] == 0
    assert repeated["predict without NMS"] > 0


KEPT = torch.tensor([[[True, False]], [[False, True]]])
GROUPS = {"objects": KEPT, "rest": ~KEPT}
BATCHES = {
    RouterRecall: ("stage", KEPT, GROUPS),
    OtherImages: (KEPT, KEPT | ~KEPT, GROUPS),
    RouteStatistics: (make_plan(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1, (1, 2)),),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_reset_starts_a_measure_anew(kind):
    measure = kind()
    nothing = measure.result()
    measure.update(*BATCHES[kind])
    once = measure.result()
    assert once != nothing
    measure.reset()
    assert measure.result() == nothing
    measure.update(*BATCHES[kind])
    assert measure.result() == once


@pytest.mark.parametrize("kind", [*BATCHES, ImageCosts, Scorer])
def test_all_that_is_measured_over_images_has_one_contract(kind):
    wanted = {name for name in vars(Measure) if not name.startswith("_")}
    assert wanted == {"update", "reset", "result"}
    assert wanted <= vars(kind).keys()
    assert Measure in kind.__mro__
