"""Models on windows in SAHI, supervision, and Ultralytics' trackers and Solutions; and the windows on their results."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
import pytest
import supervision as sv
import torch
from conftest import OPEN
from nbclient import NotebookClient
from sahi import AutoDetectionModel
from sahi.predict import get_prediction, get_sliced_prediction
from test_windows_export import calibrated
from ultralytics import YOLO, solutions
from ultralytics.utils import ROOT, YAML

from mod_vision import route_maps, set_capacity
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.window_results import windows_on

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ecosystem.md"
NOTEBOOK = PAGE.parent / "notebooks" / "quickstart.ipynb"
HEIGHT, WIDTH = 256, 320
CONF = 0.25
OBJECTS = 20  # positions that score above one half in the first frame
ADAPTIVE = 0.7  # worth of a window, at which frames have one or two, and their quarters none or one
STEP = 32  # px that the camera moves from frame to frame


@pytest.fixture(scope="module")
def frames(photos) -> list[np.ndarray]:
    """A camera that moves over a photo, to the right."""
    photo = cv2.resize(read_image(photos[0]), (WIDTH + 3 * STEP, 320))
    return [np.ascontiguousarray(photo[:HEIGHT, x * STEP : x * STEP + WIDTH]) for x in range(4)]


def detector(name: str, frames: Sequence[np.ndarray], folder: Path, least: float | None = None, **windows: Any) -> Path:
    """Save a model on windows that finds something: its scores are random, but above one half at few positions."""
    path = calibrated(name, sorted((OPEN / "images" / "val").glob("*.jpg")), folder, size=128, capacity=0.5, **windows)
    yolo: Any = YOLO(path)
    head = head_of(yolo.model)
    boxes, classes = (head.one2one_cv2, head.one2one_cv3) if head.end2end else (head.cv2, head.cv3)
    for box, cls in zip(boxes, classes, strict=True):
        torch.nn.init.normal_(cls[-1].weight, std=0.2)
        torch.nn.init.zeros_(cls[-1].bias)
        box[-1].weight.data.mul_(0.1)
        if head.reg_max == 1:
            torch.nn.init.constant_(box[-1].bias, 6.0)  # strides to each side: objects of one frame touch in the next
    image = torch.from_numpy(np.ascontiguousarray(frames[0][..., ::-1].transpose(2, 0, 1)))[None] / 255
    with torch.no_grad():
        raw = yolo.model.eval()(image)[1]
    middle = raw.get("one2one", raw)["scores"].amax(1).flatten().topk(OBJECTS).values[-1]
    for cls in classes:
        torch.nn.init.constant_(cls[-1].bias, -float(middle))
    if least is not None:
        head.entry.set_threshold(least)
    yolo.save(path)
    return path


@pytest.fixture(scope="module", params=[None, ADAPTIVE], ids=["fixed", "adaptive"])
def checkpoint(request, frames, tmp_path_factory) -> Path:
    return detector("yolo26n", frames, tmp_path_factory.mktemp("detect"), request.param)


@pytest.fixture(scope="module")
def segmenter(frames, tmp_path_factory) -> Path:
    return detector("yolo26n-seg", frames, tmp_path_factory.mktemp("segment"))


@pytest.fixture(scope="module")
def with_nms(frames, tmp_path_factory) -> Path:
    return detector("yolo11n", frames, tmp_path_factory.mktemp("nms"))


def predict(model: Any, source: Any, **settings: Any) -> list[Any]:
    yolo = model if isinstance(model, YOLO) else YOLO(model)
    return yolo.predict(source, **{"imgsz": WIDTH, "conf": CONF, "device": "cpu", "verbose": False, **settings})


def shown(result: Any) -> np.ndarray:
    """Boxes, scores and classes of a result, in the order of the boxes."""
    boxes = result.boxes.cpu().numpy()
    return in_order(np.column_stack((boxes.xyxy, boxes.conf, boxes.cls)))


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.round(2).T[::-1])]


def objects_of(prediction: Any) -> np.ndarray:
    """The same of a prediction of SAHI."""
    rows = [(*o.bbox.to_xyxy(), o.score.value, o.category.id) for o in prediction.object_prediction_list]
    return in_order(np.array(rows, float).reshape(-1, 6))


# -------------------------------------------------------------------------------------------------- SAHI, supervision


@pytest.fixture(scope="module")
def sahi_model(checkpoint) -> Any:
    settings = {"model_type": "ultralytics", "device": "cpu", "confidence_threshold": CONF, "image_size": WIDTH}
    return AutoDetectionModel.from_pretrained(model_path=str(checkpoint), **settings)


def test_sahi_finds_what_predict_finds(sahi_model, checkpoint, frames):
    for frame, result in zip(frames, predict(checkpoint, frames), strict=True):
        found = objects_of(get_prediction(frame[..., ::-1].copy(), sahi_model))
        assert len(found) > 5
        np.testing.assert_allclose(found, shown(result), atol=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_sahi_slices_what_predict_slices(sahi_model, checkpoint, frames, batch):
    """Objects of each slice at its place; none is merged where boxes must be equal for that."""
    height, width = HEIGHT // 2, WIDTH // 2
    apart = {"overlap_height_ratio": 0, "overlap_width_ratio": 0, "perform_standard_pred": False}
    merging = {"postprocess_type": "NMS", "postprocess_match_metric": "IOU", "postprocess_match_threshold": 1.0}
    image = frames[0][..., ::-1].copy()
    sliced = get_sliced_prediction(image, sahi_model, height, width, batch_size=batch, verbose=0, **apart, **merging)
    corners = [(y, x) for y in (0, height) for x in (0, width)]
    parts = [np.ascontiguousarray(frames[0][y : y + height, x : x + width]) for y, x in corners]
    results = zip(corners, predict(checkpoint, parts), strict=True)
    expected = [shown(result) + np.array([x, y, x, y, 0, 0]) for (y, x), result in results]
    found = objects_of(sliced)
    assert len(found) > 5
    np.testing.assert_allclose(found, in_order(np.concatenate(expected)), atol=1e-3)


def test_supervision_has_boxes_and_draws_windows(checkpoint, frames):
    (result,) = predict(checkpoint, frames[0])
    found = sv.Detections.from_ultralytics(result)
    assert len(found) > 5
    np.testing.assert_array_equal(found.xyxy, result.boxes.xyxy)
    np.testing.assert_array_equal(found.confidence, result.boxes.conf)
    np.testing.assert_array_equal(found.class_id, result.boxes.cls)
    annotator = sv.BoxAnnotator(sv.Color.WHITE, color_lookup=sv.ColorLookup.INDEX)
    scene = annotator.annotate(frames[0].copy(), sv.Detections(xyxy=result.windows))
    left, top, right, bottom = result.windows[0].astype(int)
    assert (scene[top:bottom, left] == 255).all() or (scene[top:bottom, right - 1] == 255).all()


def test_supervision_has_masks(segmenter, frames):
    (result,) = predict(segmenter, frames[0], retina_masks=True)
    found = sv.Detections.from_ultralytics(result)
    np.testing.assert_array_equal(found.xyxy, result.boxes.xyxy)
    np.testing.assert_array_equal(found.mask, result.masks.data.bool())
    assert found.mask.any((1, 2)).sum() > 5


# ------------------------------------------------------------------------------------------------ tracks and Solutions


@pytest.mark.parametrize("tracker", ["bytetrack.yaml", "tracktrack.yaml"])
def test_tracks_are_what_predict_finds(checkpoint, frames, tracker):
    """They keep their numbers, and their results the windows."""
    plain, model = predict(checkpoint, frames), YOLO(checkpoint)
    seen = []
    for frame, expected in zip(frames, plain, strict=True):
        (result,) = model.track(frame, persist=True, tracker=tracker, imgsz=WIDTH, conf=CONF, verbose=False)
        np.testing.assert_array_equal(result.windows, expected.windows)
        assert result.boxes.is_track
        seen.append(set(result.boxes.id.int().tolist()))
        if len(seen) == 1:
            mine = shown(result)
            assert len(mine)
            distance = np.abs(mine[:, None] - shown(expected)[None]).max(2)
            assert distance.min(1).max() < 1e-2
    assert seen[0] & seen[1] & seen[2]


def solved(kind: Any, checkpoint: Path, frames: list[np.ndarray], **settings: Any) -> tuple[Any, list[Any]]:
    """A Solution and what it made of each frame; it draws on them."""
    solution = kind(model=str(checkpoint), show=False, verbose=False, imgsz=WIDTH, conf=CONF, device="cpu", **settings)
    return solution, [solution(frame.copy()) for frame in frames]


def test_solutions_count_objects_in_regions(checkpoint, frames):
    ends = {"left": (0, 171.3), "right": (171.3, WIDTH)}
    region = {side: [(x, 0), (end, 0), (end, HEIGHT), (x, HEIGHT)] for side, (x, end) in ends.items()}
    _, (made,) = solved(solutions.RegionCounter, checkpoint, frames[:1], region=region, tracker="bytetrack.yaml")
    boxes = shown(predict(checkpoint, frames[0])[0])
    right = ((boxes[:, 0] + boxes[:, 2]) / 2 > 171.3).sum()
    assert made.region_counts == {"left": len(boxes) - right, "right": right}
    assert made.total_tracks == len(boxes) > 5


def test_solutions_count_objects_that_cross_a_line(checkpoint, frames):
    """The camera moves to the right, so nearly all objects move to the left; a tracker can take one for another."""
    tracks: dict[int, list[float]] = {}
    model = YOLO(checkpoint)
    for frame in frames:
        (result,) = model.track(frame, persist=True, imgsz=WIDTH, conf=CONF, tracker="bytetrack.yaml", verbose=False)
        for number, box in zip(result.boxes.id.int().tolist(), result.boxes.xyxy, strict=True):
            tracks.setdefault(number, []).append(float(box[0] + box[2]) / 2)
    middle = float(np.median([places[0] for places in tracks.values() if len(places) > 1])) - STEP / 2
    steps = [[(a - middle, b - middle) for a, b in pairwise(places)] for places in tracks.values()]
    first = [next(((a, b) for a, b in own if a * b < 0), (0.0, 0.0)) for own in steps]  # a track counts once
    back, crossed = sum(a < b for a, b in first), sum(a > b for a, b in first)
    assert back < crossed < len(tracks)
    line = [(middle, -HEIGHT), (middle, 2 * HEIGHT)]
    counter, made = solved(solutions.ObjectCounter, checkpoint, frames, region=line, tracker="bytetrack.yaml")
    assert (counter.in_count, counter.out_count) == (back, crossed)
    assert made[-1].out_count == crossed


def test_solutions_draw_where_objects_were(checkpoint, frames):
    drawn, made = solved(solutions.Heatmap, checkpoint, frames[:1], tracker="bytetrack.yaml")
    boxes = shown(predict(checkpoint, frames[0])[0])
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes[:, :4].astype(int):
        inside[top:bottom, left:right] = True
        assert drawn.heatmap[(top + bottom) // 2, (left + right) // 2] > 0
    assert not drawn.heatmap[~inside].any()
    assert made[0].plot_im.shape == frames[0].shape


# ------------------------------------------------------------------------------------------------- windows of a result


class Seen:
    """The windows that reached the first convolution of the model of a predictor, for each forward."""

    def __init__(self, yolo: YOLO) -> None:
        self.batches: list[torch.Tensor] = []
        yolo.add_callback("on_predict_start", self.listen)

    def listen(self, predictor: Any) -> None:
        entry = head_of(predictor.model.model).entry
        entry.conv.register_forward_pre_hook(lambda module, args: self.batches.append(args[0]))


def pixels(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    left, top, right, bottom = box.astype(int)
    return image[top:bottom, left:right, ::-1].transpose(2, 0, 1) / 255


def test_windows_are_those_that_the_network_saw(checkpoint, frames):
    """In px of each image: one as large as the input, one that is padded above and below, one of twice the size."""
    double = cv2.resize(frames[0], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    images = [frames[0], np.ascontiguousarray(frames[1][:200]), double]
    yolo = YOLO(checkpoint)
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


def test_windows_are_those_of_the_heatmap(checkpoint, photos):
    for photo in photos[:2]:
        (result,) = predict(checkpoint, photo, imgsz=640)
        (layer,) = route_maps(YOLO(checkpoint), photo, 640)
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
    yolo = YOLO(detector("yolo11n", frames, tmp_path, coarse=0.25))
    with pytest.raises(ValueError, match=r"does not go with mod\.windows\.coarse: 0\.25; set model: in") as told:
        yolo.track(frames[0], tracker=str(reid), imgsz=WIDTH, verbose=False)
    assert "\n" not in str(told.value)
    assert len(yolo.track(frames[0], tracker="bytetrack.yaml", imgsz=WIDTH, verbose=False)) == 1


# -------------------------------------------------------------------------------------------- the page and the notebook


@pytest.fixture(scope="module")
def desk(with_nms, frames, photos, tmp_path_factory) -> Path:
    """A folder with what the page names: a model, a photo, a video."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(with_nms, folder / "mine.pt")
    shutil.copy(photos[0], folder / "photo.jpg")
    video = cv2.VideoWriter(str(folder / "road.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (WIDTH, HEIGHT))
    for frame in frames:
        video.write(frame)
    video.release()
    return folder


def test_the_page(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
    assert re.search(r"^computed \d+ x \d+ px at \d+, \d+$", capsys.readouterr().out, re.MULTILINE)
    assert cv2.imread("windows.jpg") is not None


def test_the_notebook(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "commit it without outputs"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("PYTEST_CURRENT_TEST")  # Ultralytics would write elsewhere than for users
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**env, "YOLO_CONFIG_DIR": str(tmp_path / "config"), "OMP_NUM_THREADS": "1"})
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "windows of 256 px" in printed
    assert "equals eager on 4 images" in printed
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert (tmp_path / "quickstart.onnx").is_file()
