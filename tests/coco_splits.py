"""COCO JSONs and predictions for them, their scores, and pycocotools' own numbers."""

import json

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.yolo.run.validate import Validation

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
