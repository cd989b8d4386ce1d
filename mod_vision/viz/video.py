"""A video of views, with curves of what was skipped, and a table of the figures of each frame beside it."""

from __future__ import annotations

import csv
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np

from mod_vision.files import renamed_at_end
from mod_vision.text import in_csv
from mod_vision.viz.curves import curve
from mod_vision.viz.layout import blank, with_blocks
from mod_vision.viz.views import View
from mod_vision.yolo.sources import Clip

CODECS = {".mp4": "mp4v", ".webm": "VP80"}
WINDOW = 300  # frames that the curves show
FIGURE_SPACE = "\u2007"  # as wide as a digit, so that all frames are of one size


class Figures(NamedTuple):
    """What a frame cost.

    Attributes:
        skipped: Share of the blocks of all layers that its patches did not pass.
        by_layer: Share of the patches that each layer did not compute.
        gflops: Executed GFLOPs, and those of the dense twin; None where they cannot be counted.
    """

    skipped: float
    by_layer: dict[str, float]
    gflops: tuple[float, float] | None

    def row(self) -> dict[str, Any]:
        """Return the figures as columns of a table."""
        executed, dense = self.gflops or (None, None)
        saved = None if executed is None or dense is None else dense - executed
        costs = {"gflops": executed, "dense_gflops": dense, "saved_gflops": saved}
        named = {"skipped": self.skipped} | {f"{name} skipped": share for name, share in self.by_layer.items()} | costs
        return {name: "" if value is None else round(value, 4) for name, value in named.items()}


class Recording:
    """A video and a .csv that grow frame by frame, as a context: they are complete whatever ends it.

    Both are written under temporary names, and renamed in the end, also after an error or Ctrl-C.

    Args:
        path: The video, .mp4 or, for browsers, .webm; the .csv gets its name.
        clip: Where the frames come from.
        most: Most frames that will be added, None if that is not known.
    """

    def __init__(self, path: Path, clip: Clip, most: int | None = None) -> None:
        self.path, self.clip = path, clip
        self.frames = 0
        self._written = 0  # frames of the video, of which a live one can have several for one view
        self._window = min(clip.total or WINDOW, most or WINDOW, WINDOW)
        self._recent: deque[Figures] = deque(maxlen=self._window)
        self._stack = ExitStack()

    def __enter__(self) -> Recording:
        self._video = self._stack.enter_context(renamed_at_end(self.path))
        self._table = self._stack.enter_context(renamed_at_end(self.path.with_suffix(".csv")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def add(self, view: View, figures: Figures) -> None:
        """Add a frame.

        Raises:
            OSError: If the files cannot be written.
        """
        self._recent.append(figures)
        picture = _even(with_blocks(view.picture, [*view.legends, *self._curves(view.px)], view.px))
        if not self.frames:
            self._open(picture, figures)
        if picture.shape[1::-1] != self._size:  # a stream that changed; the codec would leave the frame out
            picture = cv2.resize(picture, self._size)
        seconds = time.monotonic() - self._start if self.clip.live else self.frames / self.clip.fps
        due = round(seconds * self.clip.fps) + 1 if self.clip.live else self._written + 1
        for _ in range(due - self._written):  # none where a live source is ahead of its own pace
            self._writer.write(picture)
            self._written += 1
        self.frames += 1
        self._rows.writerow({"frame": self.frames, "seconds": round(seconds, 3), **figures.row()})

    def _open(self, picture: np.ndarray, figures: Figures) -> None:
        """Open the files for pictures like the first one."""
        self._start = time.monotonic()
        self._size = picture.shape[1::-1]
        codec: Any = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix])
        self._writer = cv2.VideoWriter(str(self._video), codec, self.clip.fps, self._size)
        if not self._writer.isOpened():
            raise OSError(f"cannot write a video of {self._size[0]} x {self._size[1]} pixels to {self.path}.")
        self._stack.callback(self._writer.release)
        file = self._stack.enter_context(self._table.open("w", buffering=1, newline=""))
        self._rows = csv.DictWriter(file, ["frame", "seconds", *figures.row()])
        self._rows.writerow({column: in_csv(column) for column in self._rows.fieldnames})

    def _curves(self, px: int) -> list[np.ndarray]:
        """Draw the skipped share, and the saved GFLOPs where they are known, over the last frames."""
        last = self._recent[-1]
        skipped = [figures.skipped for figures in self._recent]
        drawn = [curve(f"skipped {100 * last.skipped:.0f}%", skipped, 1.0, "100%", self._window, px)]
        if last.gflops:
            saved = [dense - executed for executed, dense in (f.gflops for f in self._recent if f.gflops)]
            _, dense = last.gflops
            most = f"{dense:.2f}"
            title = f"saved {f'{saved[-1]:.2f}'.rjust(len(most), FIGURE_SPACE)} of {most} GFLOPs"
            drawn.append(curve(title, saved, dense, most, self._window, px))
        return drawn


def _even(picture: np.ndarray) -> np.ndarray:
    """Add a white row or column to odd sides, which the codec would cut."""
    height, width = picture.shape[:2]
    page = blank(height + height % 2, width + width % 2)
    page[:height, :width] = picture
    return page
