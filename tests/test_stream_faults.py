"""Streams whose frames are broken: what is no frame is refused, and after what is odd all is right again."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import FEW
from frames import with_box
from hypothesis import given
from hypothesis import strategies as st
from ultralytics import YOLO
from ultralytics.utils.metrics import box_iou

from mod_vision import Stream


@pytest.fixture(scope="module")
def model() -> YOLO:
    return YOLO("yolo26n-mod-hituav.pt")


@pytest.mark.parametrize(
    "frame", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_frame_is_refused_and_the_stream_goes_on(frame, model, scene):
    stream = Stream(model, imgsz=320)
    stream(scene)
    with pytest.raises(ValueError, match=r"as cv2\.VideoCapture reads it, got"):
        stream(frame)
    assert (stream(scene).ages == 1).all()


GLITCHES = {
    "repeated": lambda frame: frame,
    "black": lambda frame: frame * 0,
    "half gray": lambda frame: np.concatenate((frame[:256], np.full_like(frame[256:], 128))),  # a packet was lost
    "smaller": lambda frame: frame[::2, ::2].copy(),
    "upright": lambda frame: np.rot90(frame).copy(),
    "noise": lambda frame: np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8),
    "one pixel": lambda frame: frame[:1, :1].copy(),
}


@given(order=st.lists(st.sampled_from(sorted(GLITCHES)), min_size=1, max_size=6))
@FEW
def test_a_stream_is_right_again_after_frames_that_are_broken(order, model, scene):
    stream = Stream(model, refresh=20, imgsz=320, conf=0.25)
    first = stream(scene)
    for i, name in enumerate(order):
        frame = GLITCHES[name](with_box(scene, 40 * i, 100))
        result = stream(frame)
        assert result.orig_shape == frame.shape[:2]
        assert len(result.ages) == len(result.boxes)
        assert result.ages.max(initial=0) <= i + 1
    for _ in range(22):
        result = stream(scene)
    same = box_iou(first.boxes.xyxy, result.boxes.xyxy)
    assert len(first.boxes)
    assert (same.amax(1) > 0.5).float().mean() > 0.7
    assert len(result.boxes) < 1.3 * len(first.boxes) + 1
