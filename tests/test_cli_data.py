"""Models, data sets and folders that a command cannot use: one line that names what is wrong."""

import shutil

import pytest
import yaml
from helpers import error_text

from mod_vision.cli.main import main
from mod_vision.yolo.model.loading import load_model

pytestmark = pytest.mark.usefixtures("own_folder")


def test_missing_model_and_data(capsys, tmp_path):
    out = f"out={tmp_path / 'o'}"
    assert "none.pt does not exist" in error_text(capsys, "val", "model=none.pt", "data=mod-open.yaml", out)
    missing = error_text(capsys, "val", "model=yolo26n-mod-hybrid.yaml", f"data={tmp_path}/none.yaml", "imgsz=64", out)
    assert "none.yaml" in missing


def test_empty_data_set(capsys, tmp_path, tiny_data):
    data = yaml.safe_load(tiny_data.read_text())
    (tmp_path / "images" / "val").mkdir(parents=True)
    (tmp_path / "images" / "train").mkdir()
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump({**data, "path": str(tmp_path)}))
    words = ("val", "model=yolo26n-mod-hybrid.yaml", f"data={tmp_path}/empty.yaml", "imgsz=64", f"out={tmp_path / 'o'}")
    assert "no images" in error_text(capsys, *words).lower()


@pytest.mark.parametrize(
    ("verb", "keys", "reason"),
    [
        ("val", {"stuff": "nope"}, "`stuff: nope` must be a folder for each split, such as `{val: stuff/val}`"),
        ("val", {"stuff": {"val": 5}}, "`stuff: {'val': 5}` must be a folder for each split"),
        ("val", {"stuff": {"val": "stuff"}}, "`stuff_names: None` must be names by the number"),
        ("val", {"stuff": {"val": "stuff"}, "stuff_names": ["sky"]}, "`stuff_names: ['sky']` must be names"),
        ("val", {"annotations": ["x"]}, "`annotations: ['x']` must be a JSON file, or one for each split"),
        ("val", {"annotations": {"val": 5}}, "`annotations: {'val': 5}` must be a JSON file"),
        ("report", {"val": None}, "`val: None` names no images; write the folder, such as `val: images/val`"),
        ("thresholds", {"train": None}, "The YAML has images for: val."),
    ],
)
def test_keys_of_a_data_yaml(capsys, tmp_path, tiny_data, verb, keys, reason):
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | keys))
    out = {"val": "o", "report": "o.html", "thresholds": "o.pt"}[verb]
    words = ["fit", "thresholds=True"] if verb == "thresholds" else [verb]
    told = error_text(capsys, *words, "model=yolo26n-mod-hybrid.yaml", "data=keys.yaml", "imgsz=32", f"out={out}")
    assert reason in told
    assert "keys.yaml" in told


@pytest.mark.parametrize(("task", "verb"), [("cls", "val"), ("pose", "compare"), ("obb", "val"), ("pose", "fit")])
def test_tasks_that_are_not_scored(capsys, task, verb):
    """Told before the data set is looked for."""
    model = load_model(f"yolo26n-{task}.yaml")
    model.save("other.pt")
    words = ["models=other.pt,yolo26n-mod-hybrid-seg.pt"] if verb == "compare" else ["model=other.pt"]
    verb = "val" if verb == "compare" else verb
    told = error_text(capsys, verb, *words, "data=none.yaml", "out=o.pt" if verb == "fit" else "out=o")
    assert f"this {'one' if verb == 'fit' else 'model'} is for {model.task!r}" in told


def test_output_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (("demo",), ("val", "model=a.pt", "data=b.yaml")):
        assert "cannot write to the output folder" in error_text(capsys, *words, f"out={tmp_path / 'file' / 'below'}")


def test_a_damaged_checkpoint_is_refused(capsys, tmp_path):
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    out = f"out={tmp_path / 'o'}"
    assert "half.pt" in error_text(capsys, "val", f"model={tmp_path}/half.pt", "data=mod-open.yaml", out)


def test_a_checkpoint_of_other_classes(capsys, tmp_path, tiny_data):
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    model = YOLO("yolo26n-mod-hybrid.yaml")
    model.model = DetectionModel("yolo26n-mod-hybrid.yaml", nc=3, verbose=False)
    model.model.args, model.model.names = {}, {0: "x", 1: "y", 2: "z"}
    model.save(tmp_path / "three.pt")
    words = ("val", f"model={tmp_path}/three.pt", f"data={tiny_data}", "imgsz=64", f"out={tmp_path / 'o'}")
    assert "classes" in error_text(capsys, *words)


def test_a_corrupt_image_is_reported_and_the_rest_scored(capsys, tmp_path, tiny_data):
    root = tmp_path / "data"
    shutil.copytree(tiny_data.parent, root)
    (root / "labels" / "val.cache").unlink(missing_ok=True)
    next((root / "images" / "val").glob("*.jpg")).write_bytes(b"no image")
    data = yaml.safe_load(tiny_data.read_text())
    (root / "tiny.yaml").write_text(yaml.safe_dump({**data, "path": str(root)}))
    words = ["val", "model=yolo26n-mod-hybrid.yaml", f"data={root}/tiny.yaml", "imgsz=64", f"out={tmp_path / 'o'}"]
    assert main(words) == 0, capsys.readouterr().err
    assert "3 images, COCO metrics" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["val", "fit", "thresholds", "report"])
def test_images_without_a_byte(capsys, tmp_path, tiny_data, verb):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "a.jpg").touch()
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | {"path": str(tmp_path)}))
    out = {"val": "o", "report": "o.html"}.get(verb, "o.pt")
    first = ["fit", "thresholds=True"] if verb == "thresholds" else [verb]
    words = (*first, "model=yolo26n-mod-hybrid.yaml", "data=zero.yaml", "imgsz=32", f"out={out}")
    assert main([*words, "evaluate=False"] if verb == "report" else list(words)) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert "can be read" in told
    assert ("zero.yaml" if verb != "thresholds" else "a.jpg") in told
