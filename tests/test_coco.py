"""COCO metrics against pycocotools by hand and against Ultralytics' own, for every kind of ground truth; streaming."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import FEW, OPEN, SEEDS
from hypothesis import given
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.ops import scale_masks

from mod_vision.eval.accuracy.class_table import class_csv, class_rows, class_table
from mod_vision.eval.accuracy.coco import STATS, Scorer
from mod_vision.eval.accuracy.ground_truth import from_json, from_labels
from mod_vision.eval.accuracy.matching import check_engine
from mod_vision.eval.accuracy.records import Records
from mod_vision.eval.evaluate import evaluate_model
from mod_vision.resources import find_shipped
from mod_vision.run_settings import ScoreSettings
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import Validation, _CollectMasks, validate

NAMES = {0: "cat", 1: "dog", 2: "unicorn"}  # the ground truth has no unicorn
CATEGORIES = {0: 3, 1: 90}
GAPPY = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}, {"id": 900, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [50, 20, 40, 40], "area": 1600, "iscrowd": 0},
    ],
}
WIDTH, HEIGHT = 200, 160


def score(predictions, path, task="detect", files=("a.jpg", "b.jpg"), engine="pycocotools", step=100):
    """Score predictions that come in batches of `step` images."""
    scorer = Scorer(task, path, engine)
    found = Validation(files=list(files), names=NAMES)
    for start in range(0, len(files), step):
        some = files[start : start + step]
        scorer.update(found, some, [p for p in predictions if p["file_name"] in some])
    return scorer.result()


def by_hand(path, predictions, kind, categories=CATEGORIES, only=None):
    """Return pycocotools' twelve numbers as its own documentation computes them."""
    coco = COCO(str(path))
    ids = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    key = "bbox" if kind == "bbox" else "segmentation"
    results = [
        {"image_id": ids[p["file_name"]], "category_id": categories[p["category_id"]], "score": p["score"], key: p[key]}
        for p in predictions
        if p["category_id"] in categories
    ]
    scored = COCOeval(coco, coco.loadRes(results), kind)
    if only is not None:
        scored.params.catIds = [only]
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored.stats.tolist()


def rectangle(box, counts_as_list=False):
    """Return the run lengths of a box's pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x, y, w, h = (round(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    if counts_as_list:
        pixels = mask.flatten(order="F")
        runs = np.diff([0, *(np.flatnonzero(np.diff(pixels)) + 1), len(pixels)]).tolist()
        return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if pixels[0] else runs}
    encoded = mask_utils.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def random_split(folder, seed, images=14, crowds=True, empty=True, gaps=True, decimals=1):
    """Write a COCO JSON of random objects and return it with predictions that hit some of them, with equal scores."""
    generator = np.random.default_rng(seed)
    files = [f"{i:02d}.jpg" for i in range(images)]
    ids = generator.choice(10**6, images, replace=False).tolist() if gaps else list(range(1, images + 1))
    annotations, predictions = [], []

    def box():
        w, h = generator.integers(8, 150, 2).tolist()
        return [float(generator.integers(0, WIDTH - w)), float(generator.integers(0, HEIGHT - h)), float(w), float(h)]

    def predict(file, category, where):
        score = round(float(generator.random()), decimals)
        what = {"bbox": where, "segmentation": rectangle(where)}
        predictions.append({"file_name": file, "category_id": category, "score": score, **what})

    for i, file in enumerate(files):
        for _ in range(0 if empty and i in (2, 5) else int(generator.integers(1, 7))):
            category, where, crowd = int(generator.integers(0, 2)), box(), int(crowds and generator.random() < 0.2)
            x, y, w, h = where
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h - 2]]
            mask = rectangle(where, counts_as_list=True) if crowd else polygon
            annotations.append(
                {"id": len(annotations) + 1, "image_id": ids[i], "category_id": CATEGORIES[category], "bbox": where,
                 "area": w * h - w, "iscrowd": crowd, "segmentation": mask}
            )  # fmt: skip
            for _ in range(int(generator.integers(0, 3))):
                smaller = [max(4.0, side - generator.integers(0, 9)) for side in (w, h)]
                predict(file, category, [x, y, *smaller])
        for _ in range(0 if i == 4 else 3):
            predict(file, int(generator.integers(0, 3)), box())
    for _ in range(130):  # more than the 100 that count
        predict(files[0], 0, box())
    content = {
        "images": [
            {"id": id_, "file_name": f, "width": WIDTH, "height": HEIGHT} for id_, f in zip(ids, files, strict=True)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 55, "name": "bird"}, {"id": 90, "name": "dog"}],
        "annotations": annotations,
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json", files, predictions


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


def test_annotations_numbered_from_zero_lose_no_object(tmp_path):
    """pycocotools takes a match with annotation 0 for none."""
    content = {**GAPPY, "annotations": [{**a, "id": a["id"] - 1} for a in GAPPY["annotations"]]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    perfect = [
        {"file_name": "a.jpg", "category_id": 0, "bbox": [10, 10, 30, 30], "score": 0.9},
        {"file_name": "a.jpg", "category_id": 1, "bbox": [50, 20, 40, 40], "score": 0.9},
    ]
    assert score(perfect, tmp_path / "gt.json")["box"].stats["AP"] == pytest.approx(1.0)
    assert by_hand(tmp_path / "gt.json", perfect, "bbox")[0] == pytest.approx(0.5)
    assert score([], tmp_path / "gt.json")["box"].stats["AP"] == 0.0


def changed(part, i, drop=0, **keys):
    """Return GAPPY as text with keys of an item changed, those that are None left out, and its last annotations too."""
    content = json.loads(json.dumps(GAPPY))
    content[part][i] = {key: value for key, value in {**content[part][i], **keys}.items() if value is not None}
    content["categories"] = content["categories"][: len(content["categories"]) - drop]
    content["annotations"] = content["annotations"][: len(content["annotations"]) - drop]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"images": []}', "lacks annotations, categories"),
        (json.dumps({**GAPPY, "images": GAPPY["images"][:1]}), "lacks 1 of 2 images of the data set, such as b.jpg"),
        (changed("categories", 0, name="tree", drop=1), "no class of the model is a category"),
        (changed("categories", 0, name="Cat"), "has objects of Cat, and the model has no class of that name"),
        (changed("categories", 0, name=None), r"gt.json: categories\[0\] has no name"),
        (changed("categories", 0, id=[3]), r"gt.json: categories\[0\] has id=\[3\]"),
        (changed("images", 1, file_name=None), r"gt.json: images\[1\] has no file_name"),
        (changed("images", 1, id=None), r"gt.json: images\[1\] has no id"),
        (changed("images", 0, id="7"), r"gt.json: annotations\[0\] has image_id=7, which the JSON does not list"),
        (changed("images", 1, id=7), "the images a.jpg and b.jpg of the data set are both image 7"),
        (changed("annotations", 1, image_id=None), r"gt.json: annotations\[1\] has no image_id"),
        (changed("annotations", 1, category_id=None), r"gt.json: annotations\[1\] has no category_id"),
        (changed("annotations", 1, category_id=4), r"annotations\[1\] has category_id=4, which the JSON does not list"),
        (json.dumps({**GAPPY, "annotations": {}}), "gt.json: annotations is no list"),
        (json.dumps({**GAPPY, "images": ["a.jpg"]}), r"gt.json: images\[0\] has no id"),
        (json.dumps({**GAPPY, "annotations": [{"id": 4, "image_id": 7, "category_id": 3}]}), "annotation 4 .* no bbox"),
    ],
)
def test_bad_json_is_refused(tmp_path, content, message):
    (tmp_path / "gt.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        score([], tmp_path / "gt.json")


def test_ids_can_be_strings_or_too_large_for_32_bits(tmp_path):
    path, files, predictions = random_split(tmp_path, seed=8)
    wanted = score(predictions, path, "segment", files)
    content = json.loads(path.read_text())
    for change in (str, lambda id_: id_ + 2**33):
        renamed = {
            "images": [{**image, "id": change(image["id"])} for image in content["images"]],
            "categories": [{**category, "id": change(category["id"])} for category in content["categories"]],
            "annotations": [
                {**a, "image_id": change(a["image_id"]), "category_id": change(a["category_id"])}
                for a in content["annotations"]
            ],
        }
        path.write_text(json.dumps(renamed))
        got = score(predictions, path, "segment", files)
        assert {c.id for c in got["box"].classes} == {change(id_) for id_ in (3, 55, 90)}
        for kind in ("box", "mask"):
            assert got[kind].stats["AP"] == pytest.approx(wanted[kind].stats["AP"], abs=0.01)  # ties by other ids


def test_classes_that_the_json_lacks_are_named_and_categories_without_objects_may_be_others(tmp_path, capsys):
    content = json.loads(json.dumps(GAPPY))
    content["categories"].append({"id": 2, "name": "tree"})
    (tmp_path / "gt.json").write_text(json.dumps(content))
    assert [c.name for c in score([], tmp_path / "gt.json")["box"].classes] == ["tree", "cat", "dog"]
    assert capsys.readouterr().out == ("warning: the COCO JSON has no category for the model's unicorn; not scored\n")
    content["annotations"].append({**content["annotations"][0], "category_id": 2, "image_id": 900})
    (tmp_path / "gt.json").write_text(json.dumps(content))
    assert score([], tmp_path / "gt.json", files=["a.jpg"])["box"].stats["AP"] == 0  # not in this split
    with pytest.raises(ValueError, match="has objects of tree, and the model has no class"):
        score([], tmp_path / "gt.json")


@pytest.mark.parametrize("with_area", [True, False])
def test_sizes_are_those_of_masks_if_the_json_has_no_area(tmp_path, with_area):
    """A thin object is small, though its box is large."""
    mask = rectangle([0, 0, 150, 4], counts_as_list=True)
    objects = [[[0, 0, 150, 0, 150, 4]], mask, None, [[]], [[0, 0, 150, 150]]]  # the last three have none
    area = {"area": 300} if with_area else {}
    annotations = [
        {"id": i + 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 150, 150], **area, "segmentation": what}
        for i, what in enumerate(objects)
    ]
    image = {"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
    (tmp_path / "gt.json").write_text(json.dumps({**GAPPY, "images": [image], "annotations": annotations}))
    (cat, _) = score([], tmp_path / "gt.json", files=["a.jpg"])["box"].classes
    assert (cat.small, cat.large) == ((5, 0) if with_area else (2, 3))


def test_annotations_of_images_that_were_taken_out_of_the_json_are_left_out(tmp_path):
    orphan = {**GAPPY["annotations"][0], "id": 9, "image_id": 99}
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({**GAPPY, "annotations": [orphan, *GAPPY["annotations"]]}))
    assert sum(c.objects for c in score([], path)["box"].classes) == len(GAPPY["annotations"])


FOLDERS = ["a/x.jpg", "b/x.jpg", "b/y.jpg"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (FOLDERS, [0, 1, 2]),
        (["val/b/x.jpg", "val/a/x.jpg", "y.jpg"], [1, 0, 2]),
        (["train/x.jpg", "/data/val/b/x.jpg", "elsewhere/y.jpg", "/data/val/a/x.jpg"], [3, 1, 2]),
        (["b/x.jpg", "a/x.jpg", "c/b/y.jpg", "b/y.jpg"], [1, 0, 3]),
        (["c/x.jpg", "d/x.jpg", "y.jpg"], r"a/x.jpg of the data set could be c/x.jpg \(id 0\) or d/x.jpg \(id 1\)"),
        (["a/x.jpg", "b/x.jpg", "b/x.jpg", "y.jpg"], r"b/x.jpg of the data set could be b/x.jpg \(id 1\) or b/x.jpg"),
        (["x.jpg", "y.jpg"], "the images a/x.jpg and b/x.jpg of the data set are both image 0 of the COCO JSON"),
    ],
)
def test_images_of_the_json_are_found_by_as_much_of_their_path_as_fits(tmp_path, names, wanted):
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    box = {"category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": 0}
    annotations = [{**box, "image_id": i, "area": i} for i in range(len(names))]
    (tmp_path / "gt.json").write_text(json.dumps({**GAPPY, "images": images, "annotations": annotations}))
    read = partial(from_json, tmp_path / "gt.json", FOLDERS, masks=False, folder=Path("/data/val"))
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            read()
    else:
        truth = read()
        assert [truth.subset([name])["annotations"][0]["area"] for name in FOLDERS] == wanted


def test_missing_json_and_missing_masks_and_unknown_engine_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        score([], tmp_path / "none.json")
    (tmp_path / "gt.json").write_text(json.dumps(GAPPY))
    with pytest.raises(ValueError, match="has a box without a mask"):
        score([], tmp_path / "gt.json", "segment")
    with pytest.raises(ValueError, match="engine must be one of pycocotools, faster, got 'fast'"):
        check_engine("fast")


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


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory) -> Path:
    """Embedded photos laid out as COCO, which makes Ultralytics score with its COCO tools."""
    root = tmp_path_factory.mktemp("ultralytics") / "coco"
    for kind in ("images", "labels"):
        shutil.copytree(OPEN / kind / "val", root / kind / "val")
    (root / "annotations").mkdir()
    shutil.copy(OPEN / "annotations" / "instances_val.json", root / "annotations" / "instances_val2017.json")
    (root / "val2017.txt").write_text("\n".join(map(str, sorted((root / "images" / "val").glob("*.jpg"))[-9:])))
    data = yaml.safe_load((OPEN / "mod-open.yaml").read_text())
    data |= {"path": str(root), "train": "val2017.txt", "val": "val2017.txt"}
    (root / "labels.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if k != "annotations"}))
    data["annotations"] = {"val": "annotations/instances_val2017.json"}
    (root / "coco.yaml").write_text(yaml.safe_dump(data))
    return root


def rounded(predn, pbatch):
    """Return masks scaled to the image; Ultralytics' own cut off what is below 1 where we round."""
    return scale_masks(predn["masks"][None], pbatch["ori_shape"], ratio_pad=pbatch["ratio_pad"])[0].round().byte()


def test_masks_keep_their_size_when_they_are_scaled_to_the_image():
    """A known ellipse at half its size, in a padded input, comes back; Ultralytics' own loses its border."""

    def ellipse(height, width, half_width, half_height):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        return (((x - width / 2) / half_width) ** 2 + ((y - height / 2) / half_height) ** 2 <= 1).byte()

    wanted = ellipse(80, 120, 24, 14)
    predn = {"masks": ellipse(64, 64, 12, 7)[None], "bboxes": torch.tensor([[20.0, 25, 44, 39]])}
    pbatch = {"ori_shape": (80, 120), "imgsz": (64, 64), "ratio_pad": ((0.5, 0.5), (2.0, 12.0))}

    def overlap(validator):
        mask = validator.scale_preds(validator.__new__(validator), predn, pbatch)["masks"][0]
        return float((mask & wanted).sum() / (mask | wanted).sum())

    assert overlap(_CollectMasks) > 0.9 > overlap(SegmentationValidator)


def test_figures_are_those_of_ultralytics_coco_tools(coco_folder, tmp_path):
    figures = {}

    class Reference(SegmentationValidator):
        def scale_preds(self, predn, pbatch):
            return {**super().scale_preds(predn, pbatch), "masks": rounded(predn, pbatch)}

        def eval_json(self, stats):
            figures.update(super().eval_json(stats))
            return figures

    run = {"imgsz": 160, "batch": 8, "device": "cpu"}
    folder = {"project": str(tmp_path), "name": "run", "exist_ok": True}
    data = str(coco_folder / "coco.yaml")
    load_model("yolo26n-mod-hybrid-seg.pt").val(
        validator=Reference, data=data, save_json=True, plots=False, workers=0, **run, **folder
    )
    found = evaluate_model("yolo26n-mod-hybrid-seg.pt", data, ScoreSettings(**run), **folder)
    sizes = {"APs": "_small", "APm": "_medium", "APl": "_large"}
    for key, name in {"AP": "50-95", "AP50": "50", **sizes}.items():
        assert found.box[key] == pytest.approx(figures[f"metrics/mAP{name}(B)"], abs=1e-9)
    for key, name in {"AP": "50-95", "AP50": "50"}.items():  # it takes the sizes of masks from their boxes
        assert found.mask[key] == pytest.approx(figures[f"metrics/mAP{name}(M)"], abs=1e-9)
    assert found.box["AP"] > 0


def test_yolo_labels_score_as_a_coco_json_written_from_them(coco_folder, tmp_path):
    scorer, predictions = Scorer("segment"), []

    def receive(found, files, batch):
        scorer.update(found, files, batch)
        predictions.extend(batch)

    where = {"imgsz": 160, "batch": 4, "device": "cpu", "project": str(tmp_path)}
    found = validate(load_model("yolo26n-mod-hybrid-seg.pt"), receive, data=str(coco_folder / "labels.yaml"), **where)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": n} for i, n in found.names.items()],
    }
    for i, file in enumerate(found.files):
        width, height = Image.open(coco_folder / "images" / "val" / file).size
        content["images"].append({"id": i + 1, "file_name": file, "width": width, "height": height})
        for line in (coco_folder / "labels" / "val" / f"{Path(file).stem}.txt").read_text().splitlines():
            index, *numbers = map(float, line.split())
            polygon = np.array(numbers).reshape(-1, 2) * (width, height)
            (x, y), (right, bottom) = polygon.min(0), polygon.max(0)
            mask = mask_utils.merge(mask_utils.frPyObjects([polygon.reshape(-1).tolist()], height, width))
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": i + 1, "category_id": int(index) + 1, "iscrowd": 0,
                 "bbox": [x, y, right - x, bottom - y], "area": float(mask_utils.area(mask)),
                 "segmentation": [polygon.reshape(-1).tolist()]}
            )  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps(content))
    categories = {i: i + 1 for i in found.names}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        wanted = by_hand(tmp_path / "gt.json", predictions, kind, categories)
        assert list(scorer.result()[name].stats.values()) == pytest.approx(wanted, abs=1e-4)  # labels are float32
        assert wanted[0] > 0


def test_labels_without_polygons_have_the_areas_of_their_boxes():
    label = {"width": 90, "height": 50, "cls": np.array([1.0]), "boxes": np.array([[5.0, 6, 20, 10]]), "segments": []}
    (annotation,) = from_labels([label], ["a.jpg"], NAMES).subset(["a.jpg"])["annotations"]
    assert (annotation["area"], annotation["category_id"], annotation["bbox"]) == (200, 1, [5, 6, 20, 10])


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


def test_memory_hardly_grows_with_the_images(tmp_path):
    """Kept as Ultralytics' dictionaries, the predictions of an image would take more than 10 KB."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2\n")
    for i in range(600):
        (tmp_path / "images" / f"{i}.png").symlink_to(tmp_path / "one.png")
        (tmp_path / "labels" / f"{i}.txt").symlink_to(tmp_path / "one.txt")
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": {0: "a", 1: "b"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    scorer, held, predictions = Scorer("detect", engine="faster"), [], []

    def receive(found, files, batch):
        scorer.update(found, files, batch)
        predictions.append(len(batch))
        held.append(psutil.Process().memory_info().rss)

    where = {"imgsz": 32, "batch": 10, "device": "cpu", "project": str(tmp_path), "conf": 1e-9}
    model = load_model(two_classes(tmp_path))
    validate(model, receive, data=str(tmp_path / "data.yaml"), **where)
    assert sum(predictions) > 20 * 600
    assert (held[-1] - held[20]) / 400 < 5000
    assert scorer.result()["box"].classes[0].objects == 600


def two_classes(folder):
    d = yaml.safe_load(find_shipped("yolo26-mod-hybrid.yaml").read_text())
    (folder / "yolo26n-two.yaml").write_text(yaml.safe_dump({**d, "nc": 2}))
    return folder / "yolo26n-two.yaml"
