"""The images that a conversion keeps aside, labels by a teacher for any task, and data that is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.ops import xywhr2xyxyxyxy

import mod_vision
from mod_vision.conversion.parts import RUNS, divide, state_of
from mod_vision.conversion.progress import Progress
from mod_vision.conversion.wanted import Wanted
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.run.objects import upright_boxes
from mod_vision.yolo.train.fit import labelled_images

RUN = RunSettings(imgsz=128, threads=1)


def lines(file: Any) -> list[str]:
    return Path(file).read_text().split()


def test_some_training_images_are_kept_aside(scenes, tmp_path):
    parts = divide(str(scenes), tmp_path / "work")
    content = yaml.safe_load(Path(parts.data).read_text())
    fitted, kept = lines(content["train"]), lines(content["test"])
    assert sorted(fitted + kept) == sorted(lines(tmp_path / "train.txt"))
    assert len(kept) == RUNS
    assert not set(kept) & set(lines(tmp_path / "val.txt"))
    assert [str(path) for path in parts.kept] == kept
    assert not parts.taught


def test_too_few_images(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"`train` has 8 images, a conversion needs 16"):
        divide(str(tiny_data), tmp_path / "work")


def test_a_teacher_that_knows_nothing(scenes, tmp_path):
    with pytest.raises(ValueError, match="labels=False: the model is confident"):
        divide(str(scenes), tmp_path / "work", YOLO("yolo26n.yaml"), 64)


def test_what_a_teacher_finds_are_labels(scenes, tmp_path, photos):
    """Of training images always, of `val` if it has none; a second run takes them as they are."""
    teacher = YOLO("yolov8n.yaml")
    for layer in teacher.model.model[-1].cv3:
        torch.nn.init.constant_(layer[-1].bias, 0.0)  # every class has a score of about one half
    bare = tmp_path / "bare"
    bare.mkdir()
    for photo in photos[:2]:
        (bare / photo.name).symlink_to(photo)
    data = yaml.safe_load(scenes.read_text()) | {"val": str(bare)}
    scenes.write_text(yaml.safe_dump(data))
    parts = divide(str(scenes), tmp_path / "work", teacher, 64)
    assert parts.taught
    content = yaml.safe_load(Path(parts.data).read_text())
    labels = [Path(line.replace("/images/", "/labels/")).with_suffix(".txt") for line in lines(content["val"])]
    (result,) = teacher.predict(lines(content["val"])[0], imgsz=64, conf=0.25, verbose=False)
    rows = np.loadtxt(labels[0], ndmin=2)
    np.testing.assert_allclose(rows[:, 1:], result.boxes.xywhn.numpy(), atol=1e-5)
    assert rows[:, 0].tolist() == result.boxes.cls.tolist()
    labels[0].write_text("0 0.5 0.5 0.1 0.1\n")
    divide(str(scenes), tmp_path / "work", teacher, 64)
    assert labels[0].read_text() == "0 0.5 0.5 0.1 0.1\n"


def test_a_folder_of_others_is_refused_and_stays(tmp_path):
    (tmp_path / "work").mkdir()
    notes = tmp_path / "work" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match="holds files that are not of a conversion"):
        Progress(tmp_path / "work", {})
    (tmp_path / "work" / "progress.json").write_text('{"epoch": 3}')
    with pytest.raises(FileExistsError, match="holds files that are not of a conversion"):
        Progress(tmp_path / "work", {})
    assert notes.read_text() == "mine"
    Progress(tmp_path / "own", {"a": 1}).once("b", lambda: 2)
    assert Progress(tmp_path / "own", {"a": 1}).once("b", lambda: 3) == 2
    assert Progress(tmp_path / "own", {"a": 2}).once("b", lambda: 3) == 3


def test_images_that_were_renamed_are_not_written_through_old_links(scenes, tmp_path):
    images, file = tmp_path / "data" / "images", tmp_path / "data.yaml"
    images.mkdir(parents=True)
    for path in lines(tmp_path / "train.txt")[: 2 * RUNS]:
        shutil.copy(path, images)
    names = yaml.safe_load(scenes.read_text())["names"]
    file.write_text(yaml.safe_dump({"path": str(images.parent), "train": "images", "val": "images", "names": names}))
    before, teacher = state_of(str(file)), YOLO("yolo26n.yaml")
    with pytest.raises(ValueError, match="the model is confident"):
        divide(str(file), tmp_path / "work", teacher, 64)
    for image in sorted(images.iterdir()):
        image.rename(image.with_name(f"z{image.name}"))
    shown = sorted(path.name for path in images.iterdir())
    with pytest.raises(ValueError, match="the model is confident"):
        divide(str(file), tmp_path / "work", teacher, 64)
    assert sorted(path.name for path in images.iterdir()) == shown
    links = sorted((tmp_path / "work" / "images" / "train").iterdir())
    assert len(links) == RUNS
    assert all(link.exists() for link in links)
    assert state_of(str(file)) != before, "a run that was stopped does not go on with it"
    description = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**description, "val": ""}))
    assert state_of(str(file)), "what is missing is told later"


def test_data_of_other_classes(scenes, tmp_path):
    data = yaml.safe_load(scenes.read_text()) | {"names": {0: "ship"}}
    scenes.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match="the model has 80 classes, the data set 1; train on this data set first"):
        mod_vision.convert(YOLO("yolo26n.yaml"), str(scenes), run=RUN, folder=tmp_path / "work")
    assert not (tmp_path / "work").exists()


# ------------------------------------------------------------------------------------------------------- other tasks


def test_rotated_boxes_stand_upright():
    """Around their corners, as Ultralytics has them."""
    torch.manual_seed(0)
    batch = {"img": torch.zeros(1, 3, 96, 160), "bboxes": torch.rand(50, 5)}
    size = torch.tensor([160.0, 96.0])
    rotated = torch.cat((batch["bboxes"][:, :2] * size, batch["bboxes"][:, 2:4] * size, batch["bboxes"][:, 4:]), 1)
    corners = xywhr2xyxyxyxy(rotated)
    low, high = corners.amin(1), corners.amax(1)
    torch.testing.assert_close(upright_boxes(batch), torch.cat(((low + high) / 2 / size, (high - low) / size), 1))
    plain = {**batch, "bboxes": batch["bboxes"][:, :4]}
    assert upright_boxes(plain) is plain["bboxes"]


@pytest.fixture(params=["pose", "obb"])
def other(request, tmp_path) -> tuple[str, Path, YOLO]:
    """A task, 16 + 2 images with squares and their labels for it, and a model that is confident of everything."""
    task, rng = request.param, np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2)):
        for part in ("images", "labels"):
            (tmp_path / part / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 90, (96, 128, 3), np.uint8)
            x, y = rng.integers(8, 80, 2).tolist()
            image[y : y + 12, x : x + 24] = 255
            Image.fromarray(image).save(tmp_path / f"images/{split}/{i}.png")
            box = f"{(x + 12) / 128} {(y + 6) / 96} {24 / 128} {12 / 96}"
            corners = [(x, y), (x + 24, y), (x + 24, y + 12), (x, y + 12)]
            polygon = " ".join(f"{a / 128} {b / 96}" for a, b in corners)
            label = f"{box} {(x + 12) / 128} {(y + 6) / 96} 2" if task == "pose" else polygon
            if split == "train":
                (tmp_path / f"labels/{split}/{i}.txt").write_text(f"0 {label}\n")
    data = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": {0: "square"}}
    data |= {"kpt_shape": [1, 3]} if task == "pose" else {}
    (tmp_path / "squares.yaml").write_text(yaml.safe_dump(data))
    d = {key: value for key, value in yaml_model_load(f"yolo11n-{task}.yaml").items() if key != "yaml_file"}
    d |= {"nc": 1} | ({"kpt_shape": [1, 3]} if task == "pose" else {})
    (tmp_path / f"yolo11n-{task}.yaml").write_text(yaml.safe_dump(d))
    torch.manual_seed(0)
    yolo = YOLO(tmp_path / f"yolo11n-{task}.yaml", task=task)
    for layer in yolo.model.model[-1].cv3:
        torch.nn.init.constant_(layer[-1].bias, 0.0)
    return task, tmp_path / "squares.yaml", yolo


def test_keypoints_and_rotated_boxes(other, tmp_path):
    """Converted with a teacher's labels, also of `val`: the dense model agrees with itself."""
    task, data, dense = other
    done = mod_vision.convert(dense, str(data), Wanted(speedup=1.2), False, ["look"], 1, run=RUN, folder=tmp_path / "w")
    assert done.rows[0].accuracy.ap > (50 if task == "pose" else 1)  # corners outside of the image move to its border
    routed = done.rows[-1].accuracy
    assert routed.windows is not None
    assert 0 <= routed.lost <= 100
    result = done.model.predict(np.zeros((96, 128, 3), np.uint8), imgsz=128, verbose=False)[0]
    assert (result.keypoints if task == "pose" else result.obb) is not None


def test_a_teacher_of_other_tasks(other, tmp_path):
    """What it says is read as Ultralytics reads labels of the task."""
    task, data, dense = other
    parts = divide(str(data), tmp_path / "work", dense, 128)
    content = yaml.safe_load(Path(parts.data).read_text())
    photo = lines(content["train"])[0]
    (image,) = dense.predict(photo, imgsz=128, verbose=False)
    rows = np.loadtxt(Path(photo.replace("/images/", "/labels/")).with_suffix(".txt"), ndmin=2)
    if task == "pose":
        shapes = torch.cat((image.boxes.xywhn, image.keypoints.xyn[:, 0]), 1)
        assert set(rows[:, 7]) <= {0, 2}
        assert content["kpt_shape"] == [1, 3]
    else:
        shapes = image.obb.xyxyxyxyn.flatten(1).clamp(0, 1)
    np.testing.assert_allclose(rows[:, 1 : 1 + shapes.shape[1]], shapes, atol=1e-5)
    batches = {batch["im_file"][0]: batch for batch in labelled_images(dense, parts.data, 128, "train")}
    assert len(batches[photo]["cls"]) == len(rows) > 0
