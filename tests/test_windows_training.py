"""Training on windows: what learns and by which windows, and plain `yolo` from the YAML to tracks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from helpers import attempt, make_batch, make_box_batch, read_csv, run_python, write_windows_yaml
from ultralytics import YOLO
from window_pairs import pair

from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.train.fit_windows import fit_windows


@pytest.mark.parametrize("name", ["yolo26n", "yolo26n-seg", "yolo11n-pose", "yolo26n-obb", "yolo12n"])
def test_training_reaches_windows_and_router(name):
    """The loss counts what windows own; the router learns by a column of its own."""
    routed, _ = pair(name, size=64)
    routed.train()
    batch = make_batch(2, 192) if "seg" in name else make_box_batch(2, 192)
    batch["img"] = torch.rand(2, 3, 192, 192)
    if "pose" in name:
        batch["keypoints"] = torch.rand(3, 17, 3)
    if "obb" in name:
        batch["bboxes"] = torch.cat((batch["bboxes"], torch.zeros(3, 1)), 1)
    total, items = routed.loss(batch)
    assert "windows" in items
    assert 0 < float(items["windows"]) < 5
    total.sum().backward()
    gradients = {key for key, p in routed.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".router.rows." in key for key in gradients)
    assert any(".router.head." in key for key in gradients)
    assert "model.0.conv.weight" in gradients


def test_in_training_windows_find_the_objects():
    """Whatever the router knows."""
    routed, _ = pair("yolo26n", size=64, capacity=0.2)
    routed.train()
    batch = make_box_batch(2, 320)
    batch["img"] = torch.rand(2, 3, 320, 320)
    batch["bboxes"] = torch.tensor([[0.25, 0.25, 0.05, 0.05], [0.9, 0.1, 0.05, 0.05], [0.1, 0.9, 0.05, 0.05]])
    routed.loss(batch)
    kept = head_of(routed).windows.kept()
    assert kept[0, 2, 2]
    assert kept[1, 0, 8] or kept[1, 1, 9]
    assert kept[1, 9, 1] or kept[1, 8, 0]


def test_plain_yolo_trains_validates_predicts_and_tracks(tmp_path, tiny_data):
    """In a fresh process, from the YAML; stopped after an epoch, the training goes on."""
    file = write_windows_yaml(tmp_path, size=64, capacity=0.4, coarse=0.25)
    code = f"""
from ultralytics import YOLO

def stop(trainer):
    if trainer.epoch == 1:
        raise KeyboardInterrupt

model, data = YOLO({str(file)!r}), {str(tiny_data)!r}
model.add_callback("on_train_epoch_start", stop)
try:
    model.train(data=data, epochs=2, imgsz=192, batch=4, workers=0, plots=False, project={str(tmp_path)!r})
except KeyboardInterrupt:
    print("stopped")
last = model.trainer.last
YOLO(last).train(resume=True)
best = YOLO(last)
best.val(data=data, imgsz=192, workers=0, plots=False)
photo = {str(next(Path(tiny_data).parent.rglob("*.jpg")))!r}
best.predict(photo, imgsz=192)
best.track(photo, imgsz=192, persist=True)
print("trained", best.model.model[0].router.trained)
"""
    done = run_python(code, tmp_path)
    assert "stopped" in done.stdout, done.stderr
    assert "trained True" in done.stdout, done.stderr
    assert "trains on windows of 64 px, 40 % of the pixels" in done.stdout + done.stderr
    folder = next(tmp_path.rglob("results.csv")).parent
    rows = read_csv(folder / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["train/windows"]) > 0
    assert float(read_csv(folder / "routing.csv")[-1]["routed"]) > 0.3


@pytest.mark.parametrize("mod", [{"warmup": 0.5}, {"elastic": [0.3, 1.0]}])
def test_schedules_have_the_same_columns_in_each_step(tmp_path, tiny_data, mod):
    file = write_windows_yaml(tmp_path, size=64, capacity=0.5)
    d = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(d | {"mod": d["mod"] | mod}))
    yolo = YOLO(str(file))
    settings = {"imgsz": 96, "batch": 4, "workers": 0, "plots": False, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mod_vision.yolo.train.fit.fit_windows", partial(fit_windows, steps=2))
        yolo.train(data=str(tiny_data), epochs=2, freeze=10, project=str(tmp_path), **settings)
    rows = read_csv(next(tmp_path.rglob("results.csv")))
    assert len(rows) == 2
    assert all("val/windows" in row for row in rows)
    router = YOLO(yolo.trainer.last).model.model[0].router
    assert router.trained


def test_trainings_that_are_refused(tmp_path, tiny_data):
    settings = {"data": str(tiny_data), "imgsz": 64, "epochs": 1, "batch": 4, "workers": 0, "plots": False}
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64, router="oracle")))
    _, told = attempt(lambda: yolo.train(**settings, project=str(tmp_path)))
    assert "router: oracle goes by the labels" in told


def test_outputs_can_be_walked_through(tmp_path, photos):
    """As `visualize=True` does, which takes tuples apart."""
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64)))
    yolo.predict(str(photos[0]), imgsz=96, visualize=True, project=str(tmp_path), verbose=False)
