"""Still cameras: what moved is computed, what stands still stays found, and nothing is kept for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import FEW, SEEDS
from frames import HITUAV, noisy, with_box
from hypothesis import given
from hypothesis import strategies as st
from ultralytics import YOLO
from ultralytics.utils.metrics import box_iou

from mod_vision import Stream, set_capacity, set_refresh, set_zone
from mod_vision.cli.main import main
from mod_vision.conversion.windowed import on_windows
from mod_vision.routing.placing import plan_windows
from mod_vision.routing.zone import Extent, cells_in, sums_of
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.background import FIRST, Background
from mod_vision.yolo.run.stream import frames_of
from mod_vision.yolo.run.turns import parts_of

IMGSZ = 640


@pytest.fixture(scope="module")
def model() -> YOLO:
    return YOLO("yolo26n-mod-hituav.pt")


def plan_of(model: YOLO) -> Any:
    return head_of(model.predictor.model.model).entry.plan


@given(seed=SEEDS, brightness=st.floats(0.7, 1.3), x=st.integers(0, 600), y=st.integers(0, 480))
@FEW
def test_noise_and_exposure_are_no_change_and_an_object_is(seed, brightness, x, y):
    frame = np.random.default_rng(1).integers(40, 180, (64, 80, 3)).astype(np.float32)
    frame = cv2.resize(frame, (640, 512))
    background = Background()
    assert background.changed(noisy(frame, seed)) is None
    for i in range(FIRST):
        assert background.changed(noisy(frame, seed + i + 1)).mean() < 0.01
    still = background.changed(noisy(frame, seed + 99, brightness=brightness))
    assert still.mean() < 0.01
    moved = background.changed(noisy(with_box(frame, x, y), seed + 100))
    rows, cols = slice(y * 256 // 512, (y + 24) * 256 // 512), slice(x * 256 // 640, (x + 24) * 256 // 640)
    inner = moved[rows, cols][1:-1, 1:-1]
    assert inner.size == 0 or inner.mean() > 0.8
    moved[max(rows.start - 2, 0) : rows.stop + 2, max(cols.start - 2, 0) : cols.stop + 2] = False
    assert moved.mean() < 0.01


def test_another_scene_begins_anew(scene):
    background = Background()
    assert background.changed(scene) is None
    assert background.changed(scene) is not None
    assert background.changed(scene[::-1, ::-1].copy()) is None
    assert background.changed(255 - scene) is None
    assert background.changed(scene[..., :1]) is None  # another number of channels


def test_what_stands_still_stays_found_and_is_computed_again_in_time(model, scene):
    """Each cell within `refresh` frames, by forwards that are worth it; between them, nothing is run."""
    stream = Stream(model, refresh=12, imgsz=IMGSZ, conf=0.25)
    first = stream(scene)
    assert len(first.boxes)
    assert (first.ages == 0).all()
    counts, computed = [], [np.zeros(plan_of(model).size, bool)]
    for _ in range(24):
        result = stream(scene)
        counts.append(len(result.windows))
        computed.append(plan_of(model).covered()[0].numpy() > 0 if counts[-1] else computed[0] & False)
        assert result.share == pytest.approx(counts[-1] * plan_of(model).window_share)
        assert result.ages.max() <= 13
        same = box_iou(first.boxes.xyxy, result.boxes.xyxy).amax(1) > 0.5
        assert same.float().mean() > 0.8  # a window sees less around an object
        assert len(result.boxes) < 1.25 * len(first.boxes)
    for start in range(1, 13):
        assert np.any(computed[start : start + 12], axis=0).all()
    assert 0 < max(counts) <= 4
    assert counts.count(0) > 12


def test_an_object_that_comes_is_found_and_one_that_goes_is_gone(model, scene):
    boxes = model.predict(scene, imgsz=IMGSZ, verbose=False)[0].boxes
    x1, y1, x2, y2 = boxes.xyxy[0].int().tolist()
    patch = scene[y1 - 8 : y2 + 8, x1 - 8 : x2 + 8]
    ground = np.full_like(scene, 90)
    stream = Stream(model, refresh=60, imgsz=IMGSZ)
    assert [len(stream(noisy(ground, i)).boxes) for i in range(3)] == [0, 0, 0]
    frame = ground.copy()
    frame[200 : 200 + patch.shape[0], 300 : 300 + patch.shape[1]] = patch
    alone = model.predict(frame, imgsz=IMGSZ, verbose=False)[0].boxes
    for i in range(3, 8):
        result = stream(noisy(frame, i, noise=1))
        assert 0 < result.share < 0.8
        assert len(result.boxes) == len(alone) > 0
    for i in range(8, 11):
        result = stream(noisy(ground, i, noise=1))
    assert len(result.boxes) == 0
    assert head_of(model.model).entry.plan is None  # the model itself has no state


def test_an_empty_frame_costs_no_window_but_what_is_due(model):
    stream = Stream(model, refresh=200, imgsz=IMGSZ)
    ground = np.full((512, 640, 3), 90, np.uint8)
    shares = [stream(noisy(ground, i, noise=1)).share for i in range(40)]
    assert [share > 0 for share in shares].count(True) <= 4  # the first, and what is due


@given(order=st.permutations([0, 0, 0, 1, 1, 1]))
@FEW
def test_two_interleaved_streams_give_what_each_gives_alone(order, model, scene):
    scenes = [scene, cv2.flip(scene, 1)]

    def frame(which: int, i: int) -> np.ndarray:
        return with_box(scenes[which], 100 + 30 * i, 200, 250)

    def alone(which: int) -> list[torch.Tensor]:
        stream = Stream(model, refresh=5, imgsz=IMGSZ)
        return [stream(frame(which, i)).boxes.data.clone() for i in range(3)]

    if not hasattr(test_two_interleaved_streams_give_what_each_gives_alone, "expected"):
        test_two_interleaved_streams_give_what_each_gives_alone.expected = [alone(0), alone(1)]
    streams, seen = [Stream(model, refresh=5, imgsz=IMGSZ) for _ in range(2)], [0, 0]
    for which in order:
        found = streams[which](frame(which, seen[which])).boxes.data
        expected = test_two_interleaved_streams_give_what_each_gives_alone.expected[which][seen[which]]
        torch.testing.assert_close(found, expected)
        seen[which] += 1


def video(path: Path, frames: list[np.ndarray]) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def test_plain_yolo_computes_what_moved_in_a_video_and_all_of_a_photo(tmp_path, scene):
    yolo = YOLO("yolo26n-mod-hituav.pt")
    set_refresh(yolo, 30)
    yolo.save(tmp_path / "camera.pt")
    yolo = YOLO(tmp_path / "camera.pt")
    assert yolo.model.yaml["mod"]["windows"]["refresh"] == 30
    files = [video(tmp_path / f"{n}.avi", [with_box(scene, 100 + 40 * i, 100) for i in range(5)]) for n in "ab"]
    for _ in range(2):  # a source that comes again begins anew
        for file in files:
            results = list(yolo.predict(file, imgsz=IMGSZ, stream=True, verbose=False))
            assert results[0].ages.max(initial=0) == 0
            assert max(result.ages.max(initial=0) for result in results) == 4
    alone = yolo.predict(scene, imgsz=IMGSZ, verbose=False)[0]
    assert not hasattr(alone, "ages")
    with pytest.raises(ValueError, match="one by one; set batch=1"):
        yolo.predict(files[0], imgsz=IMGSZ, batch=2, verbose=False)
    tracked = yolo.track(files[0], imgsz=IMGSZ, verbose=False)
    assert len(tracked) == 5
    assert tracked[-1].boxes.id is not None


def test_masks_and_zones_go_with_it(scene):
    yolo = on_windows(YOLO("yolo26n-seg.yaml"), WindowSettings(size=128, router="zone"))
    set_zone(yolo, [[0, 0], [0.5, 0], [0.5, 1], [0, 1]])
    stream = Stream(yolo, imgsz=320, conf=1e-4, max_det=5)  # its first windows are one, as large as the zone
    for i in range(3):
        result = stream(with_box(scene, 100 + 40 * i, 100))
        assert len(result.boxes) == len(result.ages) > 0
        assert result.masks is None or len(result.masks) == len(result.boxes)
        assert (result.boxes.xywhn[:, 0] < 0.51).all()
    assert len(stream.turns.parts) == 6  # of three by three, those that meet the zone
    assert all(columns.start < 128 for _, columns in stream.turns.parts)


def test_frames_of_another_size_begin_anew(model, scene):
    stream = Stream(model, imgsz=IMGSZ)
    stream(scene)
    stream(scene)
    result = stream(scene[:400])
    assert (result.ages == 0).all()


def test_a_dense_model_at_capacity_one_is_run_whole(scene):
    yolo = YOLO("yolo26n-mod-hituav.pt")
    set_capacity(yolo, 1.0)
    stream = Stream(yolo, imgsz=320)
    found = [stream(scene) for _ in range(3)]
    assert all((result.ages == 0).all() for result in found)
    assert torch.equal(found[0].boxes.data, found[2].boxes.data)


@given(h=st.integers(2, 40), w=st.integers(2, 60), side=st.integers(2, 12))
@FEW
def test_parts_are_covered_by_a_window_each(h, w, side):
    """And the picture by all parts."""
    window, most = (min(side, h), min(side, w)), 9
    covered, extent = np.zeros((256, 256), int), Extent(torch.zeros(1, 2), torch.ones(1, 2))
    logits, size = torch.full((1, h * w), 9.0), (h, w)
    parts = parts_of(plan_windows(logits, size, window, 1), 32 * side)
    for part in parts:
        covered[part] += 1
    assert (covered == 1).all()
    for part in (parts[0], parts[len(parts) // 2], parts[-1]):
        mask = torch.zeros(1, 256, 256, dtype=torch.bool)
        mask[0][part] = True
        inside = cells_in(sums_of(mask), size, extent)
        plan = plan_windows(logits, size, window, most, 32, 0.5, inside, tuple(range(most + 1)), cover=True)
        assert plan.width == 1


def test_bad_settings_are_refused(tmp_path, capsys):
    dense = YOLO("yolo26n.yaml")
    with pytest.raises(ValueError, match="mod-vision stream model="):
        Stream(dense)
    with pytest.raises(ValueError, match="mod-vision stream model="):
        set_refresh(dense, 3)
    with pytest.raises(ValueError, match="at least 1, or 0"):
        Stream(YOLO("yolo26n-mod.yaml"), refresh=-1)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        set_refresh(YOLO("yolo26n-mod.yaml"), 1.5)
    dense.save(tmp_path / "dense.pt")
    assert main(["stream", f"model={tmp_path / 'dense.pt'}", f"out={tmp_path / 'camera.pt'}", "refresh=7"]) == 0
    assert head_of(YOLO(tmp_path / "camera.pt").model).entry.refresh == 7
    assert main(["stream", f"model={tmp_path / 'dense.pt'}", f"out={tmp_path / 'b.pt'}", "window=100"]) == 1
    assert "mod.windows.size must be a multiple of 32" in capsys.readouterr().err


def test_a_new_scene_forgets_what_was_found(model, scene):
    """Also where the router, not the whole image, is what it is run by."""
    stream = Stream(model, imgsz=IMGSZ)
    for _ in range(3):
        assert len(stream(scene).boxes)
    other = cv2.imread(str(HITUAV / "1_90_70_0_08934.jpg"))
    result = stream(other)
    assert torch.equal(result.boxes.data, model.predict(other, imgsz=IMGSZ, verbose=False)[0].boxes.data)
    assert (result.ages == 0).all()


def test_a_new_scene_of_one_stream_does_not_stop_the_others(model, scene):
    def in_turn(first: Stream, second: Stream, frames: list[np.ndarray]) -> list[Any]:
        with frames_of([first, second]):
            return model.predict(frames, imgsz=IMGSZ, verbose=False)

    first, second = Stream(None, 3), Stream(None, 3)
    for i in range(8):
        results = in_turn(first, second, [scene, (scene if i % 2 else 255 - scene)])
        assert results[0].ages.max(initial=0) <= 4


def test_enlarged_frames_keep_what_frames_of_the_input_keep(model, scene):
    """What is not taken from a window is a margin in pixels of the input."""
    large = cv2.resize(scene, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    streams = [Stream(model, 12, imgsz=IMGSZ) for _ in range(2)]
    counts = [
        [len(stream(frame).boxes) for _ in range(8)] for stream, frame in zip(streams, (scene, large), strict=True)
    ]
    assert all(abs(a - b) <= 1 for a, b in zip(*counts, strict=True)), counts


def test_features_go_with_the_objects(scene):
    stream = Stream(None, 30)
    result = YOLO("yolo26n-mod-hituav.pt").predict(scene, imgsz=IMGSZ, verbose=False)[0]
    plan = plan_windows(torch.zeros(1, 320), (16, 20), (4, 4), 1)
    result.windows, result.feats = np.array([[0, 0, 128, 128]], np.float32), torch.rand(len(result.boxes), 8)
    stream.finish(result, plan, 0, 128)
    again = result.new()
    again.boxes, again.windows, again.feats = result.boxes[:0], result.windows, []
    stream.finish(again, plan, 0, 128)
    assert len(again.feats) == len(again.boxes) > 0
