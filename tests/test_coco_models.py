"""COCO metrics of models against Ultralytics' own, for a COCO JSON and for YOLO labels; streaming."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from coco_splits import NAMES, by_hand
from conftest import OPEN
from PIL import Image
from pycocotools import mask as mask_utils
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.ops import scale_masks

from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.eval.accuracy.ground_truth import from_labels
from mod_vision.eval.evaluate import evaluate_model
from mod_vision.resources import find_shipped
from mod_vision.run_settings import ScoreSettings
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import _CollectMasks, validate


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
