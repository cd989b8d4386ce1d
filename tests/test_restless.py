"""Parts of the picture that never come to rest: waves and leaves are looked at in turn, known objects in each frame."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import FEW
from frames import with_box
from hypothesis import given
from hypothesis import strategies as st

from mod_vision import Stream
from mod_vision.routing.zone import GRID
from mod_vision.yolo.run.restless import EVERY, Restless
from mod_vision.yolo.run.turns import Turns

IMGSZ = 640
LEARNT = 16  # frames after which what moves in each of them is known to be restless


@given(parts=st.integers(1, 12), seed=st.integers(0, 999))
@FEW
def test_restless_parts_have_their_turn_and_calm_ones_are_none(parts, seed):
    numbers = np.random.default_rng(seed)
    always = numbers.random(parts) < 0.5
    restless = Restless([(slice(i, i + 1), slice(0, GRID)) for i in range(parts)])
    last = np.zeros(parts, int)
    for frame in range(60):
        changed = np.zeros((GRID, GRID), bool)
        changed[:parts, 5] = always | ((frame % 2 == 0) & (numbers.random(parts) < 0.9))
        rests, turn = restless.take(changed)
        assert not (turn & ~rests).any()
        assert not rests[parts:].any()
        assert turn[:parts, 0].sum() <= -(-rests[:parts, 0].sum() // EVERY) or frame < LEARNT
        last[turn[:parts, 0] | ~rests[:parts, 0]] = frame
        assert frame - last.min() < EVERY
        if frame > LEARNT:
            assert (rests[:parts, 0] == always).all()


def water(scene: np.ndarray, seed: int) -> np.ndarray:
    """Return a frame whose upper half is another one each time."""
    frame, numbers = scene.copy(), np.random.default_rng(seed)
    crests = numbers.integers(0, 256, (16, 40), np.uint8)
    frame[:256] = cv2.resize(crests, (640, 256), interpolation=cv2.INTER_NEAREST)[..., None]
    return frame


def test_water_costs_a_share_of_each_frame_and_all_of_it_is_seen_in_four(camera, scene):
    stream = Stream(camera, refresh=1000, imgsz=IMGSZ)
    shares, seen = [], []
    for i in range(LEARNT + 8):
        result = stream(water(scene, i))
        computed = np.zeros(scene.shape[:2], bool)
        for x1, y1, x2, y2 in result.windows.round().astype(int).clip(0):
            computed[y1:y2, x1:x2] = True
        shares.append(float(result.share))
        seen.append(computed)
    assert min(shares[1:6]) > 0.5
    assert 0 < max(shares[LEARNT:]) < 0.5 * min(shares[1:6])
    for start in range(LEARNT, LEARNT + 8 - EVERY):
        assert np.any(seen[start : start + EVERY], axis=0)[8:200].all()


@pytest.mark.parametrize(("score", "each"), [(0.9, True), (0.1, False)])
def test_an_object_that_is_known_is_followed_in_each_frame(score, each, camera, scene):
    stream = Stream(camera, refresh=1000, imgsz=IMGSZ)
    stream(water(scene, 0))
    stream._forget()
    for i in range(1, LEARNT):
        stream.look(water(scene, i))
    stream.boxes, stream.scores = np.array([[300.0, 100, 340, 140]]), np.array([score])
    row, column = 120 * GRID // 512, 320 * GRID // 640
    looks = [stream.look(water(scene, LEARNT + i)) for i in range(EVERY)]
    computed = [look is not None and look.worth[row, column] > 0 for look in looks]
    assert computed.count(True) == (EVERY if each else 1)
    assert [look is not None and look.sure[row, column] for look in looks] == [each] * EVERY


def after_water(scene: np.ndarray, zone: np.ndarray | None = None) -> Stream:
    """Return a stream of one part that has seen water in its upper half for long."""
    stream, whole = Stream(None, refresh=1000), [(slice(0, GRID), slice(0, GRID))]
    stream.look(scene)
    stream.zone, stream.turns, stream.restless = zone, Turns(whole, 1000), Restless(whole)
    for i in range(LEARNT):
        stream.look(water(scene, i))
    return stream


def looked_at(stream: Stream, frames: list[np.ndarray], y: int) -> list[bool]:
    """Return whether a square of 24 px at (300, y) is computed in each frame."""
    looks = [stream.look(with_box(frame, 300, y)) for frame in frames]
    row, column = (y + 12) * GRID // 512, 312 * GRID // 640
    return [look is not None and bool(look.worth[row, column]) for look in looks]


@pytest.mark.parametrize("zoned", [False, True])
def test_what_moves_outside_of_the_zone_makes_nothing_restless(zoned, scene):
    zone = np.zeros((GRID, GRID), bool)
    zone[160:] = True
    stream = after_water(scene, zone if zoned else None)
    seen = looked_at(stream, [water(scene, LEARNT + i) for i in range(EVERY)], 400)
    assert seen.count(True) == (EVERY if zoned else 1)


def test_another_scene_is_learnt_anew(scene):
    stream, other = after_water(scene), 255 - scene
    assert stream.look(other) is None
    assert all(looked_at(stream, [other] * EVERY, 100))
