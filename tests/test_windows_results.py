"""The windows on results of `predict`, and features of the objects in them for trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectors import ADAPTIVE, CONF, HEIGHT, WIDTH, pixels, predict, save_detector
from ultralytics import YOLO
from ultralytics.utils import ROOT, YAML

from mod_vision import route_maps, set_capacity
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.window_results import windows_on

# ------------------------------------------------------------------------------------------------- windows of a result


class Seen:
    """The windows that reached the first convolution of the model of a predictor, for each forward."""

    def __init__(self, yolo: YOLO) -> None:
        self.batches: list[torch.Tensor] = []
        yolo.add_callback("on_predict_start", self.listen)

    def listen(self, predictor: Any) -> None:
        entry = head_of(predictor.model.model).entry
        entry.conv.register_forward_pre_hook(lambda module, args: self.batches.append(args[0]))


def test_windows_are_those_that_the_network_saw(detector, frames):
    """In px of each image: one as large as the input, one that is padded above and below, one of twice the size."""
    double = cv2.resize(frames[0], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    images = [frames[0], np.ascontiguousarray(frames[1][:200]), double]
    yolo = YOLO(detector)
    predict(yolo, frames[0])  # the first batch is run twice
    seen = Seen(yolo)
    results = predict(yolo, images, batch=3)
    windows = list(seen.batches[-1].numpy())
    assert len(windows) == sum(len(result.windows) for result in results) > 3
    for image, result in zip(images, results, strict=True):
        assert (result.windows.dtype, result.windows.shape[1]) == (np.float32, 4)
        assert (result.windows >= 0).all()
        assert (result.windows[:, 2:] <= image.shape[1::-1]).all()
        for box in result.windows:
            window, scale = windows.pop(0), 2 if image is double else 1
            part = pixels(image, box)[:, ::scale, ::scale]
            first = window.shape[1] - part.shape[1] if box[1] == 0 else 0  # what is cut off is padding
            np.testing.assert_allclose(window[:, first : first + part.shape[1]], part, atol=1e-5)
            assert part.shape[2] == window.shape[2]


def test_windows_are_those_of_the_heatmap(detector, photos):
    for photo in photos[:2]:
        (result,) = predict(detector, photo, imgsz=640)
        (layer,) = route_maps(YOLO(detector), photo, 640)
        top, left, height, width = layer.windows.boxes.T
        corners = np.stack((left, top, left + width, top + height), 1).clip(0, 1) * (result.orig_shape[::-1] * 2)
        np.testing.assert_allclose(result.windows, corners, atol=0.01)


def test_windows_that_lie_in_the_padding_are_left_out():
    corners = torch.tensor([[[0, 0], [0, 2], [4, 1]], [[0, 0], [6, 2], [3, 0]]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    plan = WindowPlan(torch.zeros(2, 64), corners, (8, 8), (2, 2), real=real)
    first, second = windows_on(plan, [(128, 256), (256, 256)])  # rows 64 to 192 are the first image
    np.testing.assert_array_equal(first, [[32, 64, 96, 128]])
    np.testing.assert_array_equal(second, [[0, 0, 64, 64], [64, 192, 128, 256]])


def test_an_image_without_windows_and_one_with(with_nms, frames, tmp_path):
    yolo = YOLO(with_nms)
    head_of(yolo.model).entry.set_threshold(ADAPTIVE)
    gray = np.full_like(frames[0], 114)
    for results in (predict(yolo, [gray, frames[0]], batch=2), predict(yolo, [gray, frames[0]], batch=1)):
        assert [len(result.windows) > 0 for result in results] == [False, True]
        assert (results[0].windows.shape, results[0].windows.dtype) == ((0, 4), np.float32)
    head_of(yolo.model).entry.set_threshold(1000.0)
    assert predict(yolo, frames[0])[0].windows.shape == (0, 4)


def test_at_capacity_one_the_window_is_the_image(segmenter, frames):
    yolo = YOLO(segmenter)
    predict(yolo, frames[0])
    set_capacity(yolo, 1.0)
    for result in predict(yolo, [frames[0], frames[1][:200]], stream=True):
        np.testing.assert_array_equal(result.windows, [[0, 0, WIDTH, result.orig_shape[0]]])
        assert result.windows.dtype == np.float32


def test_results_made_of_results_keep_windows(segmenter, frames):
    result = next(iter(predict(segmenter, frames, stream=True, batch=4, max_det=9)))
    assert len(result) > 2
    for other in (result.cpu(), result.numpy(), result[0], result[:2], result.to("cpu")):
        np.testing.assert_array_equal(other.windows, result.windows)


@pytest.mark.parametrize("name", ["yolo26n.yaml", "yolo26n-mod-hybrid.yaml"])
def test_models_without_windows_have_none(name, frames):
    (result,) = predict(YOLO(name), frames[0])
    assert not hasattr(result, "windows")
    assert not hasattr(result.cpu(), "windows")


# ------------------------------------------------------------------------- trackers that know objects by their features


@pytest.fixture(scope="module")
def reid(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("tracker") / "reid.yaml"
    YAML.save(file, YAML.load(ROOT / "cfg/trackers/botsort.yaml") | {"with_reid": True, "model": "auto"})
    return file


def features(yolo: YOLO, image: Any, tracker: Path) -> tuple[Any, np.ndarray]:
    """What a tracker is given: objects, and the features of each."""
    found = []
    yolo.callbacks["on_predict_postprocess_end"].insert(0, lambda predictor: found.append(predictor.results[0]))
    yolo.track(image, tracker=str(tracker), imgsz=WIDTH, conf=CONF, device="cpu", verbose=False)
    return found[-1].boxes.numpy(), torch.stack(list(found[-1].feats)).numpy()


def test_features_of_a_window_that_is_the_image_are_the_dense_ones(with_nms, frames, reid):
    dense, whole = YOLO(with_nms), YOLO(with_nms)
    set_capacity(dense, 1.0)
    head_of(whole.model).entry.window = 640
    (boxes, expected), (same, own) = (features(yolo, frames[0], reid) for yolo in (dense, whole))
    assert len(boxes) > 5
    np.testing.assert_allclose(same.xyxy, boxes.xyxy, atol=1e-2)
    np.testing.assert_allclose(own, expected, atol=1e-3)


def test_features_of_objects_are_those_of_their_windows(with_nms, frames, reid):
    """Each window gives what it gives as an image of its own, in which an object is known by its box and score."""
    yolo = YOLO(with_nms)
    (result,) = predict(yolo, frames[2])
    boxes, own = features(yolo, frames[2], reid)
    np.testing.assert_allclose(boxes.xyxy, result.boxes.xyxy.numpy(), atol=1e-3)
    windows = torch.from_numpy(np.stack([pixels(frames[2], box) for box in result.windows])).float()
    net = yolo.predictor.model.model
    with torch.no_grad(), head_of(net).entry.whole_image():
        y, raw = net(windows)
    size = min(m.shape[1] for m in raw["feats"])
    known = torch.cat([m.flatten(2).unflatten(1, (size, -1)).mean(2) for m in raw["feats"]], 2)
    y, known = (values.transpose(1, 2) for values in (y, known))
    corners = torch.cat((y[..., :2] - y[..., 2:4] / 2, y[..., :2] + y[..., 2:4] / 2), 2).numpy()
    corners = (corners + np.tile(result.windows[:, None, :2], 2)).clip(0, [WIDTH, HEIGHT] * 2)
    rows = np.concatenate((corners, 100 * y[..., 4:].amax(2, keepdim=True).numpy()), 2).reshape(-1, 5)
    distance = np.abs(np.column_stack((boxes.xyxy, 100 * boxes.conf))[:, None] - rows).max(2)
    assert distance.min(1).max() < 0.01
    at = distance.argmin(1)
    assert set(at // y.shape[1]) == {0, 1}
    np.testing.assert_allclose(own, known.flatten(0, 1).numpy()[at], atol=1e-3)


def test_trackers_with_features_track(with_nms, frames, reid):
    """With a threshold too, and frames in which there is no window."""
    for least in (None, ADAPTIVE):
        yolo: Any = YOLO(with_nms)
        if least:
            head_of(yolo.model).entry.set_threshold(least)
        gray = np.full_like(frames[0], 114)
        numbers = []
        for frame in (gray, *frames[:2], gray, frames[2]):
            (result,) = yolo.track(frame, persist=True, tracker=str(reid), imgsz=WIDTH, conf=CONF, verbose=False)
            numbers.append(set() if result.boxes.id is None else set(result.boxes.id.int().tolist()))
        assert numbers[2] & numbers[4]


def test_features_with_a_coarse_pass_are_refused(frames, tmp_path, reid):
    yolo = YOLO(save_detector("yolo11n", frames, tmp_path, coarse=0.25))
    with pytest.raises(ValueError, match=r"does not go with mod\.windows\.coarse: 0\.25; set model: in") as told:
        yolo.track(frames[0], tracker=str(reid), imgsz=WIDTH, verbose=False)
    assert "\n" not in str(told.value)
    assert len(yolo.track(frames[0], tracker="bytetrack.yaml", imgsz=WIDTH, verbose=False)) == 1
