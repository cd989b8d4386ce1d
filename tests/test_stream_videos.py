"""Videos as cameras and telephones write them: turned by a flag, cut off, and sources that stall."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from frames import noisy, with_box
from ultralytics import YOLO

from mod_vision import Stream, set_refresh

IMGSZ = 320
QUARTER = [0, 1 << 16, 0, -1 << 16, 0, 0, 320 << 16, 0, 1 << 30]  # a turn of 90 degrees: rows of a 3x3 matrix


def video(path: Path, frames: list[np.ndarray]) -> Path:
    """Write frames as an MP4."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)  # type: ignore[attr-defined]
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def turned(path: Path) -> Path:
    """Say in the header of an MP4's track that its pictures are to be turned by 90 degrees."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = np.array(QUARTER, ">i4").tobytes()
    path.write_bytes(content)
    return path


@pytest.fixture
def frames(scene) -> list[np.ndarray]:
    small = cv2.resize(scene, (320, 256))
    return [noisy(with_box(small, 40 + 10 * i, 100), i, 1) for i in range(6)]


def test_a_video_that_is_to_be_turned_is_a_stream_of_turned_frames(tmp_path, camera, frames):
    set_refresh(camera, 30)
    plain, path = video(tmp_path / "plain.mp4", frames), turned(video(tmp_path / "turned.mp4", frames))
    upright = list(camera.predict(plain, imgsz=IMGSZ, stream=True, verbose=False))
    found = list(camera.predict(path, imgsz=IMGSZ, stream=True, verbose=False))
    assert [r.orig_shape for r in upright] == [(256, 320)] * 6
    assert [r.orig_shape for r in found] == [(320, 256)] * 6
    assert float(found[0].share) == 1.0
    for result in found[1:]:
        assert 0 < result.share < 1
        x = 40 + 12 + 10 * found.index(result)  # the centre of the square, which is at (256 - y, x) now
        centre = np.array((256 - 112, x))
        inside = (result.windows[:, :2] <= centre) & (centre <= result.windows[:, 2:])
        assert inside.all(1).any()


def test_a_video_that_is_cut_off_gives_the_frames_that_there_are(tmp_path, camera, frames):
    set_refresh(camera, 30)
    path = video(tmp_path / "cut.avi", 4 * frames)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    found = list(camera.predict(path, imgsz=IMGSZ, stream=True, verbose=False))
    assert 0 < len(found) < 24
    assert all(result.share < 1 for result in found[1:-1])  # the last one is torn


def test_a_source_that_stalls_and_comes_back_costs_little_meanwhile(camera: YOLO, frames):
    """Ultralytics gives the last picture of a source that stalls, and a black one where it is lost."""
    stream = Stream(camera, refresh=1000, imgsz=IMGSZ)
    for frame in frames:
        stream(frame)
    stalled = [stream(frames[-1]) for _ in range(6)]
    assert max(float(result.share) for result in stalled[2:]) < 0.25  # the square is still new to the background
    assert all(len(result.boxes) == len(stalled[0].boxes) for result in stalled)
    lost = [stream(np.zeros_like(frames[0])) for _ in range(3)]
    assert [len(result.boxes) for result in lost] == [0] * 3
    back = stream(frames[-1])
    alone = camera.predict(frames[-1], imgsz=IMGSZ, verbose=False)[0]
    assert float(back.share) == 1.0
    assert np.allclose(back.boxes.data, alone.boxes.data)
