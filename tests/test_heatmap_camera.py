"""Heat maps of a still camera: a frame shows what moved, what it cost, and how old what stands is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from clips import read_video
from frames import still, with_box
from helpers import read_csv
from ultralytics import YOLO

from mod_vision import Stream, set_refresh
from mod_vision.viz.heatmap import heatmap
from mod_vision.viz.results import draw_results
from mod_vision.yolo.model.windows import head_of

IMGSZ = 640


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    yolo = YOLO("yolo26n-mod-hituav.pt")
    head_of(yolo.model).entry.window = yolo.model.yaml["mod"]["windows"]["size"] = 128
    set_refresh(yolo, 100)
    path = tmp_path_factory.mktemp("camera") / "camera.pt"
    yolo.save(path)
    return path


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """A video in which nothing moves in two frames of three."""
    path = tmp_path_factory.mktemp("gate") / "gate.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (640, 512))
    for i in range(9):
        writer.write(with_box(still(), 100 + 80 * (i // 3), 100, 250, side=40))
    writer.release()
    return path


def test_each_frame_has_what_a_prediction_of_it_computes(camera, gate, tmp_path):
    """Windows, and the age of the oldest detection; GFLOPs follow the windows."""
    (video,) = heatmap(camera, gate, IMGSZ, tmp_path, boxes=True)
    rows, stream = read_csv(video.with_suffix(".csv")), Stream(YOLO(camera), imgsz=IMGSZ, conf=0.25)
    frames = read_video(gate)[0]
    assert len(read_video(video)[0]) == len(rows) == len(frames) == 9
    for frame, row in zip(frames, rows, strict=True):
        result = stream(frame)
        assert float(row["windows"]) == len(result.windows)
        assert int(row["oldest"]) == result.ages.max(initial=0)
        assert (float(row["gflops"]) == float(row["dense_gflops"])) == (result.share == 1)  # as a whole
        assert (float(row["gflops"]) < 0.01) == (result.share == 0)
    assert any(float(row["windows"]) == 0 for row in rows[1:])
    assert any(float(row["windows"]) > 0 for row in rows[1:])
    (alone,) = heatmap("yolo26n-mod-hituav.pt", gate, IMGSZ, tmp_path / "alone", frames=2)
    assert "oldest" not in read_csv(alone.with_suffix(".csv"))[0]


def test_what_stands_is_told_with_its_age(camera):
    stream = Stream(YOLO(camera), imgsz=IMGSZ, conf=0.25)
    stream(still())
    result = stream(still())
    assert (result.ages == 1).all()
    old = draw_results(still(), result)
    result.ages = np.zeros_like(result.ages)
    assert not np.array_equal(old, draw_results(still(), result))
