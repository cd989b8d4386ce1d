"""A trained dense model into one on windows: what is kept, chosen, said, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import randomise
from PIL import Image
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.ops import xywhr2xyxyxyxy

import mod_vision
from mod_vision.cli.main import main
from mod_vision.conversion.choice import best_within, settings_of
from mod_vision.conversion.job import with_router
from mod_vision.conversion.parts import RUNS, divide, state_of
from mod_vision.conversion.progress import Progress
from mod_vision.conversion.rows import Accuracy, score
from mod_vision.conversion.seen import WHOLE, Seen, look_at, shown_by
from mod_vision.conversion.timing import WindowTime, _few_and_many, time_predictions, time_windows
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.routing import routed_layers
from mod_vision.routing.lost_objects import Objects, shown_share
from mod_vision.routing.placing import plan_windows, window_count
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.objects import upright_boxes
from mod_vision.yolo.train.fit import labelled_images

RUN = RunSettings(imgsz=128, threads=1)
MODELS = ("yolov8n", "yolov9t", "yolo12n", "yolo26n-seg")


def outputs(value: Any) -> list[torch.Tensor]:
    value = list(value.values()) if isinstance(value, dict) else value
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in outputs(v)]


# ------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("router", ["look", "stem"])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_stays(name, router):
    dense = YOLO(f"{name}.yaml")
    randomise(dense.model).eval()
    x = torch.rand(1, 3, 256, 320)
    with torch.inference_mode():
        expected = outputs(dense.model(x))
    routed = on_windows(dense, WindowSettings(router=router, entry=5 if router == "stem" else 0))
    before, after = dense.model.state_dict(), routed.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(".router." in key for key in after.keys() - before.keys())
    assert not any(routed_layers(dense.model)), "the given model stays dense"
    mod_vision.set_capacity(routed, 1.0)
    with torch.inference_mode():
        found = outputs(routed.model.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_back_to_the_dense_model():
    dense = YOLO("yolo26n.yaml")
    randomise(dense.model).eval()
    again = without_windows(on_windows(dense, WindowSettings()))
    assert not any(routed_layers(again.model))
    before, after = dense.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="no dense one to go back to"):
        without_windows(again)


def test_a_routed_model_is_refused():
    with pytest.raises(ValueError, match="routed already"):
        on_windows(YOLO("yolo26n-mod.yaml"), WindowSettings())


# ------------------------------------------------------------------------------------------------------------ images


@pytest.fixture
def scenes(tmp_path, photos) -> Path:
    """A data set of 24 + 4 photos."""
    names = {i: f"class{i}" for i in range(80)}
    train = sorted(photos[0].parents[1].joinpath("train").glob("*.jpg"))[:24]
    for split, files in (("train", train), ("val", photos[:4])):
        (tmp_path / f"{split}.txt").write_text("".join(f"{file}\n" for file in files))
    data = {"path": str(tmp_path), "train": "train.txt", "val": "val.txt", "names": names}
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "scenes.yaml"


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


@pytest.mark.parametrize("router", ["look", "stem"])
def test_models_of_stride_64_see_images_of_its_multiples(scenes, router):
    yolo = with_router(YOLO("yolov8n-p6.yaml"), router)
    mod_vision.set_capacity(yolo, 1e-3)
    assert {seen.plan.cell for seen in look_at(yolo, str(scenes), 224, "val")} == {64}


# ------------------------------------------------------------------------------------------------------------ choice


def seen(seed: int, objects: int = 6, size: tuple[int, int] = (12, 16)) -> Seen:
    torch.manual_seed(seed)
    logits = torch.randn(1, size[0] * size[1]) * 2 - 3
    low = torch.rand(objects, 2) * torch.tensor([size[1] * 32 - 40, size[0] * 32 - 40])
    boxes = torch.cat((low, low + 5 + torch.rand(objects, 2) * 30), 1)
    return Seen(plan_windows(logits, size, (4, 4), 1), boxes, torch.ones(objects, dtype=torch.bool))


@pytest.mark.parametrize("size", [128, 192])
def test_what_windows_would_show_is_what_they_show(size):
    image = seen(0)
    shown = shown_by(image, size)
    for threshold in (0.05, 0.4, 1.0):
        window = (size // 32, size // 32)
        most = window_count(image.plan.size, window, 1.0)
        plan = plan_windows(image.plan.logits, image.plan.size, window, most, least=threshold)
        i = shown.chosen(threshold)
        assert plan.width == shown.counts[i]
        objects = Objects(image.boxes, torch.ones(6), torch.zeros(6, dtype=torch.long), [""] * 6)
        assert shown.lost[i] == int((shown_share(plan, objects) < WHOLE).sum())


def test_the_choice_loses_least_within_the_time():
    images = [seen(i) for i in range(6)]
    times = {(128, 0.0): WindowTime(20, 5), (192, 0.0): WindowTime(20, 9)}
    settings = settings_of("look", images, 100.0, times)
    assert {setting.size for setting in settings} == {128, 192}
    lost = [best_within(settings, ms) for ms in (30, 50, 70)]
    assert all(setting.ms <= ms for setting, ms in zip(lost, (30, 50, 70), strict=True))
    assert lost[0].lost >= lost[1].lost >= lost[2].lost
    assert lost[0].lost > lost[2].lost
    for setting in settings:
        assert setting.crowded == pytest.approx(100 / times[setting.size, 0.0].each * (setting.size // 32) ** 2 / 192)
    fastest = min(settings, key=lambda s: s.ms)
    assert best_within(settings, 1.0).ms == fastest.ms, "nothing is so fast, so the fastest"


def test_crowded_images_lose_nothing_and_cost_the_dense_time():
    settings = settings_of("look", [seen(0)], 10.0, {(128, 0.0): WindowTime(4, 50)})
    setting = min(settings, key=lambda s: s.threshold)
    assert setting.share == 1
    assert setting.ms == 14
    assert setting.lost == 0


def test_a_coarse_pass_counts_for_what_it_finds():
    """Objects larger than a window are lost without one, and with one that does not find them."""
    image = seen(0)
    y, x = (float(n) for n in image.plan.corners[0, 0] * 32 + 40)  # within the first window
    boxes = torch.tensor([[0.0, 0.0, 300.0, 200.0], [100.0, 100.0, 350.0, 300.0], [x, y, x + 9, y + 9]])
    image = image._replace(boxes=boxes, coarse=torch.tensor([True, False, False]))
    lost = []
    for coarse in (0.0, 0.25):
        settings = settings_of("look", [image], 1e4, {(128, coarse): WindowTime(1, 1)})
        lost.append(min(setting.lost for setting in settings))
    assert lost == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_times_of_windows():
    yolo = YOLO("yolo26n-mod.yaml")
    dense, times = time_windows(yolo, (64, 128), (0.0, 0.25), torch.rand(1, 3, 256, 384))
    assert times.keys() == {(64, 0.0), (64, 0.25), (128, 0.0), (128, 0.25)}
    assert dense > 0
    assert all(time.each >= 0 and time.base > 0 for time in times.values())
    assert min(time.each for time in times.values()) > 0, "more windows take more time"
    assert times[128, 0.0].of(3) == times[128, 0.0].base + 3 * times[128, 0.0].each


@pytest.mark.parametrize(("height", "width", "size", "counts"), [(160, 192, 128, [1, 2]), (384, 640, 320, [1, 2])])
def test_time_is_taken_of_different_numbers_of_windows(height, width, size, counts):
    """A tenth and half of a small image are as many windows; the difference is what one of them takes."""
    models = _few_and_many(YOLO("yolo26n-mod.yaml"), size, 0.0, torch.rand(1, 3, height, width))
    assert [count for count, _ in models] == counts


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=yolo26n.yaml"], "convert takes a trained checkpoint"),
        (["model=no.pt", "data=no.yaml"], "checkpoint no.pt does not exist"),
        ([], "mod-vision convert needs model=..."),
        (["model=dense.pt", "data=no.yaml", "budget=fast"], "budget=fast is no time; write milliseconds"),
        (["model=dense.pt", "data=no.yaml", "budget=30ms", "speedup=2"], "give budget=30ms or speedup=2, not both"),
        (["model=dense.pt", "data=no.yaml", "speedup=0.5"], "speedup must be above 1"),
        (["model=dense.pt", "data=no.yaml", "max_loss=-1"], "max_loss must be AP in [0, 100]"),
        (["model=dense.pt", "data=no.yaml", "router=oracle"], "look, scout and stem, got 'oracle'"),
        (["model=dense.pt", "data=no.yaml", "router="], "router= names none"),
        (["model=dense.pt", "data=no.yaml", "steps=0"], "steps=0: steps must be a whole number of at least 1"),
        (["model=dense.pt", "data=no.yaml", "out=dense.pt"], "is the model it is made from"),
        (["model=classes.pt", "data=no.yaml"], "detect, segment, pose, obb, this one is for 'classify'"),
        (["model=routed.pt", "data=no.yaml"], "the model is routed already"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    for name, base in (("dense", "yolo26n"), ("classes", "yolo26n-cls"), ("routed", "yolo26n-mod")):
        if f"model={name}.pt" in words:
            YOLO(f"{base}.yaml").save(f"{name}.pt")
    assert main(["convert", *words]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert told in said
    assert not list(tmp_path.glob("*-mod.pt"))


def test_data_of_other_classes(scenes, tmp_path):
    data = yaml.safe_load(scenes.read_text()) | {"names": {0: "ship"}}
    scenes.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match="the model has 80 classes, the data set 1; train on this data set first"):
        mod_vision.convert(YOLO("yolo26n.yaml"), str(scenes), run=RUN, folder=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_refused_unless_forced_and_resumed(scenes, tmp_path, monkeypatch, capsys):
    """An untrained model finds nothing at any size, so the smallest image is the better buy."""
    monkeypatch.chdir(tmp_path)
    YOLO("yolo26n.yaml").save("dense.pt")
    words = ["convert", "model=dense.pt", f"data={scenes}", "imgsz=256", "steps=2", "router=look"]
    words += ["speedup=1.2", "threads=1"]

    def scored(*given: Any) -> Accuracy:
        found = score(*given)
        torch.set_num_threads(2)  # as Ultralytics does where there are three cores
        return found

    def stop(models: Any, photos: Any) -> Any:
        assert torch.get_num_threads() == 1, "scoring had set its own"
        if len(models) > 1:
            raise KeyboardInterrupt
        return time_predictions(models, photos)

    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr("mod_vision.conversion.convert.score", scored)
        patch.setattr("mod_vision.conversion.convert.time_predictions", stop)
        assert main(words) == 130
    work = tmp_path / "dense-mod-convert"
    done = json.loads((work / "progress.json").read_text())
    assert "settings" in done
    assert (work / "look.pt").is_file()
    shutil.copytree(work, tmp_path / "kept")
    capsys.readouterr()
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "going on with what is in dense-mod-convert" in told
    assert "is the better buy: 0.0 AP in" in told
    assert "batch 1, cpu, 1 threads" in told
    assert "nothing was written; force=True" in told
    assert not (tmp_path / "dense-mod.pt").exists()
    assert not work.exists()

    (tmp_path / "kept").rename(work)
    assert main([*words, "force=True"]) == 0
    told = capsys.readouterr().out
    assert "saved as dense-mod.pt: yolo predict model=dense-mod.pt imgsz=256" in told
    dense, routed = load_model("dense.pt").model, load_model("dense-mod.pt").model
    head = head_of(routed)
    assert head.entry.threshold is not None
    assert head.entry.crowded > 0
    assert routed.yaml["mod"]["windows"]["size"] == head.entry.window
    state = routed.state_dict()
    assert all(torch.equal(state[key], value) for key, value in dense.state_dict().items())
    assert head.entry.router.trained
    assert trained_with(YOLO("dense-mod.pt")) == (256, str(scenes))
    assert YOLO("dense-mod.pt").predict(np.zeros((128, 256, 3), np.uint8), imgsz=256, verbose=False)


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
