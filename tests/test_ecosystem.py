"""Models on windows in SAHI, supervision, and Ultralytics' trackers and Solutions; and the page that shows them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
import pytest
import supervision as sv
from detectors import CONF, HEIGHT, STEP, WIDTH, in_order, predict, shown
from nbclient import NotebookClient
from sahi import AutoDetectionModel
from sahi.predict import get_prediction, get_sliced_prediction
from ultralytics import YOLO, solutions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ecosystem.md"
NOTEBOOK = PAGE.parent / "notebooks" / "quickstart.ipynb"


def objects_of(prediction: Any) -> np.ndarray:
    """Boxes, scores and classes of a prediction of SAHI, in the order of the boxes."""
    rows = [(*o.bbox.to_xyxy(), o.score.value, o.category.id) for o in prediction.object_prediction_list]
    return in_order(np.array(rows, float).reshape(-1, 6))


# -------------------------------------------------------------------------------------------------- SAHI, supervision


@pytest.fixture(scope="module")
def sahi_model(detector) -> Any:
    settings = {"model_type": "ultralytics", "device": "cpu", "confidence_threshold": CONF, "image_size": WIDTH}
    return AutoDetectionModel.from_pretrained(model_path=str(detector), **settings)


def test_sahi_finds_what_predict_finds(sahi_model, detector, frames):
    for frame, result in zip(frames, predict(detector, frames), strict=True):
        found = objects_of(get_prediction(frame[..., ::-1].copy(), sahi_model))
        assert len(found) > 5
        np.testing.assert_allclose(found, shown(result), atol=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_sahi_slices_what_predict_slices(sahi_model, detector, frames, batch):
    """Objects of each slice at its place; none is merged where boxes must be equal for that."""
    height, width = HEIGHT // 2, WIDTH // 2
    apart = {"overlap_height_ratio": 0, "overlap_width_ratio": 0, "perform_standard_pred": False}
    merging = {"postprocess_type": "NMS", "postprocess_match_metric": "IOU", "postprocess_match_threshold": 1.0}
    image = frames[0][..., ::-1].copy()
    sliced = get_sliced_prediction(image, sahi_model, height, width, batch_size=batch, verbose=0, **apart, **merging)
    corners = [(y, x) for y in (0, height) for x in (0, width)]
    parts = [np.ascontiguousarray(frames[0][y : y + height, x : x + width]) for y, x in corners]
    results = zip(corners, predict(detector, parts), strict=True)
    expected = [shown(result) + np.array([x, y, x, y, 0, 0]) for (y, x), result in results]
    found = objects_of(sliced)
    assert len(found) > 5
    np.testing.assert_allclose(found, in_order(np.concatenate(expected)), atol=1e-3)


def test_supervision_has_boxes_and_draws_windows(detector, frames):
    (result,) = predict(detector, frames[0])
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
def test_tracks_are_what_predict_finds(detector, frames, tracker):
    """They keep their numbers, and their results the windows."""
    plain, model = predict(detector, frames), YOLO(detector)
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


def solved(kind: Any, detector: Path, frames: list[np.ndarray], **settings: Any) -> tuple[Any, list[Any]]:
    """A Solution and what it made of each frame; it draws on them."""
    solution = kind(model=str(detector), show=False, verbose=False, imgsz=WIDTH, conf=CONF, device="cpu", **settings)
    return solution, [solution(frame.copy()) for frame in frames]


def test_solutions_count_objects_in_regions(detector, frames):
    ends = {"left": (0, 171.3), "right": (171.3, WIDTH)}
    region = {side: [(x, 0), (end, 0), (end, HEIGHT), (x, HEIGHT)] for side, (x, end) in ends.items()}
    _, (made,) = solved(solutions.RegionCounter, detector, frames[:1], region=region, tracker="bytetrack.yaml")
    boxes = shown(predict(detector, frames[0])[0])
    right = ((boxes[:, 0] + boxes[:, 2]) / 2 > 171.3).sum()
    assert made.region_counts == {"left": len(boxes) - right, "right": right}
    assert made.total_tracks == len(boxes) > 5


def test_solutions_count_objects_that_cross_a_line(detector, frames):
    """The camera moves to the right, so nearly all objects move to the left; a tracker can take one for another."""
    tracks: dict[int, list[float]] = {}
    model = YOLO(detector)
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
    counter, made = solved(solutions.ObjectCounter, detector, frames, region=line, tracker="bytetrack.yaml")
    assert (counter.in_count, counter.out_count) == (back, crossed)
    assert made[-1].out_count == crossed


def test_solutions_draw_where_objects_were(detector, frames):
    drawn, made = solved(solutions.Heatmap, detector, frames[:1], tracker="bytetrack.yaml")
    boxes = shown(predict(detector, frames[0])[0])
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes[:, :4].astype(int):
        inside[top:bottom, left:right] = True
        assert drawn.heatmap[(top + bottom) // 2, (left + right) // 2] > 0
    assert not drawn.heatmap[~inside].any()
    assert made[0].plot_im.shape == frames[0].shape


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
