"""Streams beside other work: other predictions, a model that is changed, a batch of busy and calm ones, a zone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from frames import with_box
from ultralytics import YOLO

from mod_vision import Stream, set_refresh, set_zone
from mod_vision.routing.window_layer import FEW
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.stream import frames_of

IMGSZ = 320
LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


def test_a_prediction_within_a_prediction_is_none_of_the_stream(camera, scene):
    """Such as of crops, by another model or by one on windows."""
    others, found = [YOLO("yolo26n.yaml"), YOLO("yolo26n-mod-hituav.pt")], []

    def read_crops(predictor: Any) -> None:
        for other in others:
            found.append(other.predict(scene[:96, :96], imgsz=96, verbose=False)[0])

    camera.add_callback("on_predict_postprocess_end", read_crops)
    stream = Stream(camera, 1000, imgsz=IMGSZ, conf=0.25)
    ages = [stream(scene).ages.max() for _ in range(3)]
    assert ages == [0, 1, 2]
    assert stream.shape == scene.shape
    assert len(found) == 6
    assert not any(hasattr(result, "ages") for result in found)


def test_other_predictions_of_the_model_come_between(camera, scene):
    stream = Stream(camera, 1000, imgsz=IMGSZ, conf=0.25)
    first = stream(scene)
    assert len(camera.predict([scene, scene[::-1].copy()], batch=2, imgsz=IMGSZ, verbose=False)) == 2
    again = stream(scene)
    assert again.share == 0
    assert torch.equal(first.boxes.data, again.boxes.data)


def test_a_model_that_is_changed_begins_anew(camera, scene):
    stream = Stream(camera, 1000, imgsz=IMGSZ, conf=0.25)
    assert (stream(scene).boxes.xywhn[:, 0] > 0.5).any()
    assert stream(scene).share == 0
    set_zone(camera, LEFT)
    result = stream(scene)
    assert result.share > 0
    assert (result.boxes.xywhn[:, 0] < 0.51).all()
    set_refresh(camera, 5)
    assert (stream(scene).ages == 0).all()


def test_what_moves_outside_of_the_zone_costs_nothing(camera, scene, monkeypatch):
    set_zone(camera, LEFT)
    stream = Stream(camera, 1000, imgsz=IMGSZ)
    stream(scene)
    net = camera.predictor.model
    run = net.forward
    monkeypatch.setattr(net, "forward", lambda *args, **kwargs: pytest.fail("the network ran"))
    shares = [stream(with_box(scene, 400 + 40 * i, 200, 250)).share for i in range(3)]
    assert shares == [0, 0, 0]
    monkeypatch.setattr(net, "forward", run)
    assert stream(with_box(scene, 100, 200, 250)).share > 0


def test_a_calm_stream_is_the_same_beside_a_busy_one(scene):
    """The router is asked for the busy one alone."""
    yolo = YOLO("yolo26n-mod-hituav.pt")
    entry: Any = head_of(yolo.model).entry
    entry.window = 128
    entry.set_threshold(1e6)
    calm, busy = scene.copy(), scene.copy()
    calm[:40, :40] = 255
    busy[:64] = scene[256:320][::-1]

    def second(frames: list[np.ndarray]) -> list[Any]:
        streams = [Stream(None, 1000) for _ in frames]
        with frames_of(streams):
            yolo.predict([scene] * len(frames), imgsz=640, verbose=False)
        for stream in streams:
            stream._forget()  # what is found is sure
        with frames_of(streams):
            return yolo.predict(frames, imgsz=640, verbose=False)

    (alone,) = second([calm])
    beside, other = second([calm, busy])
    assert 0 < len(alone.windows) <= FEW
    assert np.array_equal(alone.windows, beside.windows)
    assert other.share == 0


def test_frames_that_are_run_whole_tell_the_deadline_too(camera, scene):
    stream = Stream(camera, budget=1.0, imgsz=IMGSZ)
    for i in range(6):
        result = stream(cv2.flip(scene, i % 3 - 1))
    assert stream.deadline.most() == 1
    assert len(result.windows) == 1
    assert result.share < 0.5


def test_another_callback_of_the_predictor_may_be_cleared(scene):
    yolo = YOLO("yolo26n.yaml")
    yolo.clear_callback("on_predict_batch_start")
    assert len(yolo.predict(scene, imgsz=64, verbose=False)) == 1


def test_the_steps_of_a_predictor_are_wrapped_once(camera, scene):
    stream = Stream(camera, 1000, imgsz=IMGSZ)
    stream(scene)
    before = camera.predictor.postprocess
    camera.predictor.postprocess = lambda *args, **kwargs: before(*args, **kwargs)  # as a tracker does
    own = camera.predictor.postprocess
    stream(scene)
    assert camera.predictor.postprocess is own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"refresh": 2.5}, r"got 2\.5"),
        ({"budget": "33ms"}, "got '33ms'"),
        ({"stream": True}, "one by one"),
        ({"source": "a.mp4"}, "one by one"),
    ],
)
def test_arguments_are_checked(camera, given, said):
    with pytest.raises(ValueError, match=said):
        Stream(camera, **given)


def test_no_budget_takes_that_of_the_model_and_zero_none(camera):
    set_refresh(camera, 30, 20)
    assert Stream(camera).deadline.ms == 20
    assert Stream(camera, budget=0).deadline is None
