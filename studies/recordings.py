"""Recordings made from stills of a camera: real backgrounds, real objects of other stills of it, which move.

What is made: the movement, the noise of the sensor, the drift of the exposure and the compression of each frame, and
where they are asked for the crests of waves, which come and go.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.utils import img2label_paths

from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.images import read_image, some_images

LEAST = 10  # px, longer side of an object that is cut out
MARGIN = 4  # px around it, which fade into the background
SPEEDS = (0.03, 0.15)  # of its width, each frame
CREST, APART, BRIGHT = (6, 24), 100, 70.0  # px wide; px from one to the next on the mean; levels
NOISE, DRIFT, QUALITY = 2.0, 0.08, 85  # levels; share of the brightness, over about 60 frames; of JPEG


@dataclass
class Mover:
    """An object that crosses the picture.

    Attributes:
        patch: (h, w, 3) pixels, with a margin.
        cls: Its class.
        at: x and y of its corner when it appears.
        step: px a frame, to the right.
        begins: Frame at which it appears.
    """

    patch: np.ndarray
    cls: int
    at: tuple[float, float]
    step: float
    begins: int

    def box(self, frame: int, width: int) -> tuple[float, float, float, float] | None:
        """Return its corners in a frame, None where it is not wholly in the picture."""
        x = self.at[0] + self.step * (frame - self.begins)
        if frame < self.begins or x < MARGIN or x + self.patch.shape[1] + MARGIN > width:
            return None
        height, wide = self.patch.shape[:2]
        return x + MARGIN, self.at[1] + MARGIN, x + wide - MARGIN, self.at[1] + height - MARGIN


@dataclass
class Recording:
    """A recording of a still camera.

    Attributes:
        name: Of the still that is its background.
        still: (H, W, 3).
        standing: (n, 5) class and corners of what is in it.
        movers: What crosses it.
        frames: Number of frames.
        seed: Of its noise.
        waves: Share of the picture's height, from below, in which crests come and go.
    """

    name: str
    still: np.ndarray
    standing: np.ndarray
    movers: list[Mover]
    frames: int
    seed: int
    waves: float = 0.0

    def labels(self, frame: int) -> list[tuple[int, int, tuple[float, ...]]]:
        """Return the objects of a frame: number (below 0 what stands), class, corners."""
        found = [(-1 - i, int(row[0]), tuple(row[1:])) for i, row in enumerate(self.standing)]
        for i, mover in enumerate(self.movers):
            if (box := mover.box(frame, self.still.shape[1])) is not None:
                found.append((i, mover.cls, box))
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames."""
        numbers = np.random.default_rng(self.seed)
        for i in range(self.frames):
            frame = self.still.astype(np.float32)
            _wave(frame[round((1 - self.waves) * frame.shape[0]) :], numbers)
            for mover in self.movers:
                if mover.box(i, frame.shape[1]) is not None:
                    _paste(frame, mover, i)
            frame = frame * (1 + DRIFT * np.sin(i / 10)) + numbers.normal(0, NOISE, frame.shape)
            done, coded = cv2.imencode(
                ".jpg", np.clip(frame, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
            )
            assert done
            decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
            assert decoded is not None
            yield decoded


def recordings(
    data: str, split: str, camera: str, frames: int, movers: int, waves: float = 0.0, seed: int = 0
) -> list[Recording]:
    """Make a recording for each camera of a split: its still with the fewest objects, crossed by those of the others.

    Args:
        data: Data YAML with boxes.
        split: Split.
        camera: Pattern that finds the camera in the name of an image.
        frames: Frames of each.
        movers: Objects that cross each.
        waves: As in `Recording`.
        seed: Of what is drawn.
    """
    images = sorted(some_images(split_images(check_data(data, split), split), sys.maxsize))
    by_camera: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        match = re.search(camera, path.name)
        by_camera[match[0] if match else ""].append(path)
    some = [paths for paths in by_camera.values() if len(paths) > 1]
    return [_recording(paths, frames, movers, waves, seed + i) for i, paths in enumerate(some)]


def _recording(paths: list[Path], frames: int, movers: int, waves: float, seed: int) -> Recording:
    """Make the recording of a camera."""
    numbers = np.random.default_rng(seed)
    still = min(paths, key=lambda path: (len(_labels(path)), path.name))
    image = read_image(still)
    others = [path for path in paths if path != still and read_image(path).shape == image.shape]
    objects = [(path, row) for path in others for row in _corners(path, image.shape)]
    objects = [(path, row) for path, row in objects if max(row[3] - row[1], row[4] - row[2]) >= LEAST]
    found: list[Mover] = []
    for i in numbers.permutation(len(objects))[: 4 * movers]:
        path, row = objects[i]
        x1, y1, x2, y2 = (round(float(n)) for n in row[1:])
        inside = x1 >= MARGIN and y1 >= MARGIN and x2 + MARGIN <= image.shape[1] and y2 + MARGIN <= image.shape[0]
        if inside and len(found) < movers:
            patch = read_image(path)[y1 - MARGIN : y2 + MARGIN, x1 - MARGIN : x2 + MARGIN]
            step = float(numbers.uniform(*SPEEDS)) * (x2 - x1)
            begins = int(numbers.integers(5, max(6, int(0.8 * frames))))
            found.append(Mover(patch, int(row[0]), (x1 - MARGIN, y1 - MARGIN), step, begins))
    return Recording(still.name, image, _corners(still, image.shape), found, frames, seed, waves)


def _labels(path: Path) -> np.ndarray:
    """Return class and relative box (M, 5) of the objects of an image."""
    file = Path(img2label_paths([str(path)])[0])
    rows = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
    return np.array(rows, float).reshape(-1, 5)


def _corners(path: Path, shape: tuple[Any, ...]) -> np.ndarray:
    """Return class and corners in px (M, 5) of the objects of an image."""
    rows = _labels(path)
    centre, half = rows[:, 1:3], rows[:, 3:] / 2
    size = (shape[1], shape[0])
    return np.concatenate((rows[:, :1], (centre - half) * size, (centre + half) * size), 1)


def _wave(water: np.ndarray, numbers: np.random.Generator) -> None:
    """Draw crests into a part of a frame (h, W, 3), each at another place than in the frame before."""
    height, width = water.shape[:2]
    for _ in range(numbers.poisson(height * width / APART**2)):
        wide, at = int(numbers.integers(*CREST)), (int(numbers.integers(width)), int(numbers.integers(height)))
        cv2.ellipse(water, at, (wide, 1 + wide // 4), 0, 0, 360, [BRIGHT + float(water[at[1], at[0]].mean())] * 3, -1)


def _paste(frame: np.ndarray, mover: Mover, i: int) -> None:
    """Put an object into a frame, its margin fading."""
    height, width = mover.patch.shape[:2]
    x = mover.at[0] + mover.step * (i - mover.begins)
    whole, part = int(x), x - int(x)
    shift = np.array([[1, 0, part], [0, 1, 0]], np.float32)
    patch = cv2.warpAffine(mover.patch, shift, (width, height), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    rows, cols = (np.minimum(np.arange(n) + 1, n - np.arange(n)).clip(max=MARGIN) / MARGIN for n in (height, width))
    alpha = np.minimum.outer(rows, cols)[..., None].astype(np.float32)
    place = frame[int(mover.at[1]) : int(mover.at[1]) + height, whole : whole + width]
    place[:] = alpha * patch + (1 - alpha) * place
