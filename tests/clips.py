"""Small videos: a photo that a camera pans over, and the frames of a file."""

from __future__ import annotations

import cv2
from conftest import OPEN

from mod_vision.yolo.run.images import read_image

IMGSZ, FRAMES, FPS = 96, 8, 12.5
PHOTOS = sorted((OPEN / "images" / "val").glob("*.jpg"))


def write_clip(path, frames=FRAMES, size=(200, 120), codec="mp4v"):
    """A camera that pans over a photo."""
    photo = cv2.resize(read_image(PHOTOS[7]), (size[0] * 2, size[1] * 2))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, size)
    assert writer.isOpened()
    for i in range(frames):
        x, y = size[0] * i // frames, size[1] * i // frames
        writer.write(photo[y : y + size[1], x : x + size[0]].copy())
    writer.release()
    return path


def read_video(path):
    """Return the frames of a video, and how many there are in a second."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)
