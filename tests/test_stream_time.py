"""Time of frames: parts in turn, a deadline, a router asked where much moves, and nothing for an empty frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import FEW
from hypothesis import given
from hypothesis import strategies as st
from ultralytics import YOLO

from mod_vision import Stream, set_refresh
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.routing.moving import LEAST, Moved, moved_sums
from mod_vision.routing.window_layer import FEW as FEW_WINDOWS
from mod_vision.routing.zone import Extent
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.deadline import Deadline
from mod_vision.yolo.run.restless import Restless
from mod_vision.yolo.run.stream import LONG, MOVED
from mod_vision.yolo.run.turns import TOGETHER, Turns

IMGSZ = 640


@given(parts=st.integers(1, 40), refresh=st.integers(1, 60), runs=st.lists(st.booleans(), min_size=1, max_size=40))
@FEW
def test_each_part_is_computed_in_time_and_few_at_a_time(parts, refresh, runs):
    squares = [(slice(i, i + 1), slice(0, 1)) for i in range(parts)]
    turns, last = Turns(squares, refresh), np.zeros(parts, int)
    for frame in range(1, 4 * refresh + 2):
        due = turns.take(runs[frame % len(runs)])[:parts, 0]
        last[due] = frame
        assert frame - last.min() <= refresh
        assert due.sum() <= TOGETHER + (parts + TOGETHER) / refresh


@given(base=st.floats(0, 40), each=st.floats(0.5, 20), budget=st.floats(20, 200), seed=st.integers(0, 99))
@FEW
def test_windows_that_fit_are_found_by_the_time_that_frames_take(base, each, budget, seed):
    deadline, numbers = Deadline(budget), np.random.default_rng(seed)
    assert deadline.most() is None
    for _ in range(40):
        count = int(numbers.integers(1, 12))
        deadline.add(count, base + each * count)
    fits = max(int((budget - base) // each), 1)
    assert fits - 1 <= deadline.most() <= fits + (abs((budget - base) / each % 1) > 1 - 1e-6)


def test_a_deadline_knows_little_from_equal_frames_and_allows_for_late_ones():
    deadline = Deadline(50.0)
    deadline.add(4, 40.0)
    assert deadline.most() == 5
    late = Deadline(50.0)
    for i in range(40):
        late.add(1 + i % 4, 10 + 5 * (1 + i % 4) + 20 * (i % 4 == 3))
    assert late.most() < 8


def test_what_does_not_fit_waits_and_the_oldest_comes_first(camera, scene, monkeypatch):
    """All of a new scene is found within a few frames, none of which has more windows than allowed."""
    stream = Stream(camera, refresh=1000, budget=5.0, imgsz=IMGSZ, conf=0.25)
    stream(np.full_like(scene, 90))
    assert stream.turns is not None
    monkeypatch.setattr(stream.deadline, "most", lambda: 8)
    alone = camera.predict(scene, imgsz=IMGSZ, conf=0.25, verbose=False)[0]
    computed = np.zeros(scene.shape[:2], bool)
    frames = 0
    while not computed.all():
        result, frames = stream(scene), frames + 1
        assert 0 < len(result.windows) <= 8
        for x1, y1, x2, y2 in result.windows.round().astype(int):
            computed[max(y1, 0) : y2, max(x1, 0) : x2] = True
    assert 3 <= frames <= 10
    assert len(result.boxes) > 0.5 * len(alone.boxes)
    assert not stream.waits.any()
    while stream(scene).share:  # leftovers of the last frames
        frames += 1
        assert frames < 14


@pytest.mark.parametrize("threshold", [0.5, 1e6])
def test_a_router_is_asked_where_much_moves(scene, threshold):
    """By a threshold that nothing reaches, only what is sure is computed: objects that were found, and what is due."""
    yolo = YOLO("yolo26n-mod-hituav.pt")
    entry: Any = head_of(yolo.model).entry
    entry.window = 128
    entry.set_threshold(threshold)
    stream = Stream(yolo, refresh=1000, imgsz=IMGSZ)
    stream(scene)
    stream._forget()
    moved = scene.copy()
    moved[:64] = scene[256:320][::-1]
    share = stream(moved).share
    covering = Stream(on_windows(without_windows(yolo), WindowSettings(size=128, router="zone")), 1000, imgsz=IMGSZ)
    covering(scene)
    covering._forget()
    result = covering(moved)
    assert len(result.windows) > FEW_WINDOWS
    assert share < result.share
    assert share == 0 if threshold > 1 else share > 0


def test_cells_are_worth_the_mean_of_their_squares():
    numbers = np.random.default_rng(0)
    worth = numbers.choice([0, LEAST, 0.75, 1], (2, 256, 256), p=[0.4, 0.2, 0.2, 0.2]).astype(np.float32)
    worth[0, :64, :64] = 0
    sure = torch.from_numpy(numbers.random((2, 256, 256)) > 0.9995)
    extent = Extent(torch.zeros(2, 2), torch.ones(2, 2))
    sums = moved_sums(Moved(torch.from_numpy(worth), sure, 3))
    cells, certain = sums.cells((8, 8), extent)
    squares = worth.reshape(2, 8, 32, 8, 32).transpose(0, 1, 3, 2, 4).reshape(2, 64, -1)
    count = (squares > 0).sum(2)
    expected = np.where(count > 0, squares.sum(2) / np.maximum(count, 1), 0)
    assert np.abs(cells.numpy() - expected).max() < 1e-6
    assert cells[0, 0] == 0
    assert torch.equal(certain, sure.view(2, 8, 32, 8, 32).any(4).any(2).flatten(1))
    other = sums.of(torch.tensor([False, True]))
    assert torch.equal(other.cells((8, 8), Extent(extent.first[:1], extent.sides[:1]))[0], cells[1:])


@pytest.mark.parametrize("task", ["", "-seg", "-pose", "-obb"])
def test_an_empty_frame_gives_what_stands_without_the_network(task, scene, monkeypatch):
    yolo = on_windows(YOLO(f"yolo26n{task}.yaml"), WindowSettings(size=128, router="zone"))
    stream = Stream(yolo, refresh=1000, imgsz=320, conf=1e-9, max_det=5)
    first = stream(scene)
    net = stream.model.predictor.model
    monkeypatch.setattr(net, "forward", lambda *args, **kwargs: pytest.fail("the network ran"))
    again = stream(scene)
    assert again.share == 0
    assert len(again.windows) == 0
    assert (again.ages == 1).all()
    assert len(again.ages) == 5
    for name in ("boxes", "masks", "keypoints", "obb"):
        own, before = getattr(again, name), getattr(first, name)
        assert (own is None) == (before is None)
        assert own is None or torch.equal(own.data, before.data)
    assert again.orig_img is scene
    assert again.plot().shape == scene.shape


def test_a_budget_is_kept_in_the_checkpoint(tmp_path, camera):
    set_refresh(camera, 20, 33)
    assert camera.model.yaml["mod"]["windows"]["budget"] == 33.0
    camera.save(tmp_path / "camera.pt")
    stream = Stream(YOLO(tmp_path / "camera.pt"))
    assert stream.refresh == 20
    assert stream.deadline.ms == 33.0
    set_refresh(camera, 20)
    assert "budget" not in camera.model.yaml["mod"]["windows"]
    for frames, budget, said in ((20, -1, "got -1"), (20, "33ms", "'33ms'"), (0, 33, "give refresh= too")):
        with pytest.raises(ValueError, match=said):
            set_refresh(camera, frames, budget)
    with pytest.raises(ValueError, match="budget must be"):
        Stream(camera, budget=-1.0)


def test_what_moved_comes_before_what_is_due_and_what_waited_long_before_all(scene):
    stream = Stream(None, refresh=1)
    stream.look(scene)
    whole = [(slice(0, 256), slice(0, 256))]
    stream.turns, stream.restless = Turns(whole, 1), Restless(whole)
    moved = scene.copy()
    moved[100:140, 200:240] = 255 - moved[100:140, 200:240]
    look = stream.look(moved)
    assert look.sure.all()
    assert look.worth[60, 88] == MOVED > look.worth[200, 10] == LEAST
    stream.waits[200, 10] = LONG
    look = stream.look(moved)
    assert look.worth[200, 10] == 1 > look.worth[60, 88] == MOVED


def test_with_a_router_too_nothing_waits_for_ever(scene, monkeypatch):
    yolo = YOLO("yolo26n-mod-hituav.pt")
    entry: Any = head_of(yolo.model).entry
    entry.window = 128
    entry.set_threshold(0.0)
    stream = Stream(yolo, refresh=1000, budget=5.0, imgsz=IMGSZ)
    stream(scene)
    monkeypatch.setattr(stream.deadline, "most", lambda: 5)
    last, numbers = np.zeros((512, 640), int), np.random.default_rng(0)
    for i in range(1, 31):
        frame = scene.copy()
        frame[:, :320] = numbers.integers(0, 255, (8, 5, 3)).repeat(64, 0).repeat(64, 1)
        result = stream(frame)
        assert len(result.windows) <= 5
        for x1, y1, x2, y2 in result.windows.round().astype(int).clip(0):
            last[y1:y2, x1:x2] = i
    assert last[:, :320].min() > 18
