"""Images without a window, which cost the look alone: how many there are, and what images take in the mean."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ultralytics import YOLO

from mod_vision.conversion.timing import time_photos
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.images import evenly_spaced, read_image, some_images

MOST = 100  # images that are timed


class Timed(NamedTuple):
    """What images of `val` take, each by itself.

    Attributes:
        ms: Milliseconds of each that was timed, from the decoded image to its detections.
        windows: Number of windows of each.
        images: Number of images of `val`.
    """

    ms: list[float]
    windows: list[int]
    images: int

    def sentence(self) -> str:
        """Return what share is empty, what an empty image takes, and the mean of all, as a line below the table."""
        count = len(self.ms)
        among = f"val's {count} images" if count == self.images else f"{count} images of val"
        empty = [ms for ms, windows in zip(self.ms, self.windows, strict=True) if not windows]
        mean = f"the mean of all {count} is {np.mean(self.ms):.1f} ms"
        if count != self.images:
            mean += f"; val has {self.images} images, of which these were timed"
        if not empty:
            return f"empty: each of {among} gets a window by *; {mean}"
        share = f"{len(empty)} of {among} ({100 * len(empty) / count:.0f} %)"
        return f"empty: {share} get no window by * and take {np.median(empty):.1f} ms (median); {mean}"


def time_val(yolo: YOLO, data: str, imgsz: int) -> Timed:
    """Time a model on windows on `val`, image by image.

    Args:
        yolo: The model.
        data: Data YAML.
        imgsz: Longer side of the image in px.
    """
    images = some_images(split_images(check_data(data, "val"), "val"), sys.maxsize)
    return Timed(*time_photos(yolo, imgsz, _read(evenly_spaced(images, MOST))), len(images))


def _read(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield the photos of files that can be read, one at a time: they are large."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            yield read_image(file)
