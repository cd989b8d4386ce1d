"""Which COCO JSONs are read, what is made of their ids, areas and paths, and which are refused."""

import json
from functools import partial
from pathlib import Path

import pytest
from coco_splits import GAPPY, HEIGHT, WIDTH, by_hand, random_split, rectangle, score

from mod_vision.eval.accuracy.ground_truth import from_json
from mod_vision.eval.accuracy.matching import check_engine


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
