"""A video of views, with curves of what was skipped, and a table of the figures of each frame beside it."""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np

from mod_vision.files import naming_folder, renamed_at_end
from mod_vision.text import in_csv
from mod_vision.viz.curves import curve
from mod_vision.viz.encode import video_file
from mod_vision.viz.layout import WHITE
from mod_vision.viz.routes import RouteMap, skipped_depth, skipped_share, windows_of
from mod_vision.viz.views import View
from mod_vision.yolo.run.sources import Clip

WINDOW = 300  # frames that the curves show
FIGURE_SPACE = "\u2007"  # as wide as a digit, so that all frames are of one size


class Figures(NamedTuple):
    """What a frame cost.

    Attributes:
        skipped: Share of the blocks of all layers that its patches did not pass.
        by_layer: Share of the patches that each layer did not compute.
        gflops: Executed GFLOPs, and those of the dense baseline; None where they cannot be counted.
        windows: Number of windows, a mean over frames; None of a model that does not run on windows.
        oldest: Frames ago at which the oldest of the detections was found; None where each frame is computed anew.
    """

    skipped: float
    by_layer: dict[str, float]
    gflops: tuple[float, float] | None
    windows: float | None = None
    oldest: int | None = None

    def row(self) -> dict[str, Any]:
        """Return the figures as columns of a table."""
        executed, dense = self.gflops or (None, None)
        saved = None if executed is None or dense is None else dense - executed
        costs = {"gflops": executed, "dense_gflops": dense, "saved_gflops": saved}
        counted = {} if self.windows is None else {"windows": self.windows}
        counted |= {} if self.oldest is None else {"oldest": self.oldest}
        shares = {f"{name} skipped": share for name, share in self.by_layer.items()}
        named = {"skipped": self.skipped} | shares | counted | costs
        return {name: "" if value is None else round(value, 4) for name, value in named.items()}


def figures_of(maps: Sequence[RouteMap], gflops: tuple[float, float] | None, oldest: int | None = None) -> Figures:
    """Return the figures of a frame from its route maps, what it cost, and the age of the oldest detection in it."""
    windows = windows_of(maps)
    by_layer = {layer.name: skipped_share(layer) for layer in maps}
    return Figures(skipped_depth(maps), by_layer, gflops, None if windows is None else len(windows.boxes), oldest)


class Recording:
    """A video and a .csv that grow frame by frame, as a context: they are complete whatever ends it.

    Both are written under temporary names, and renamed in the end, also after an error or Ctrl-C.

    Args:
        path: The video, .mp4 or .webm; the .csv gets its name.
        clip: Where the frames come from.
        max_frames: Most frames that will be added, None if that is not known.
    """

    def __init__(self, path: Path, clip: Clip, max_frames: int | None = None) -> None:
        self.path, self.clip = path, clip
        self.frames = 0
        self._written = 0  # frames of the video, of which a live one can have several for one view
        self._window = min(clip.total or WINDOW, max_frames or WINDOW, WINDOW)
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
            ImportError: If PyAV is not installed.
            OSError: If the files cannot be written.
        """
        self._recent.append(figures)
        picture = view.compose(self._curves(view.px))
        odd = picture.shape[0] % 2, picture.shape[1] % 2  # sides, to which a row or column is added for the codec
        picture = cv2.copyMakeBorder(picture, 0, odd[0], 0, odd[1], cv2.BORDER_CONSTANT, value=WHITE)
        if not self.frames:
            self._open(picture, figures)
        if picture.shape[1::-1] != self._size:  # a stream that changed; the codec would leave the frame out
            picture = cv2.resize(picture, self._size)
        self._writer.submit(self._append, picture, figures).result()

    def _append(self, picture: np.ndarray, figures: Figures) -> None:
        """Append a frame and its row; in a thread, where Ctrl-C does not come in between."""
        seconds = time.monotonic() - self._start if self.clip.live else self.frames / self.clip.fps
        due = round(seconds * self.clip.fps) + 1 if self.clip.live else self._written + 1
        for _ in range(due - self._written):  # none where a live source is ahead of its own pace
            self._write(picture)
            self._written += 1
        self.frames += 1
        with naming_folder(self.path.parent):
            self._rows.writerow({"frame": self.frames, "seconds": round(seconds, 3), **figures.row()})

    def _open(self, picture: np.ndarray, figures: Figures) -> None:
        """Open the files for pictures like the first one."""
        self._start = time.monotonic()
        self._size = picture.shape[1::-1]
        self._write = self._stack.enter_context(video_file(self._video, self.clip.fps, self._size))
        self._stack.enter_context(naming_folder(self.path.parent))
        file = self._stack.enter_context(self._table.open("w", buffering=1, newline=""))
        self._rows = csv.DictWriter(file, ["frame", "seconds", *figures.row()])
        self._rows.writerow({column: in_csv(column) for column in self._rows.fieldnames})
        self._writer = self._stack.enter_context(ThreadPoolExecutor(1))  # left first, when the last frame is written

    def _curves(self, px: int) -> list[np.ndarray]:
        """Draw the skipped share, and the saved GFLOPs where they are known, over the last frames."""
        last = self._recent[-1]
        skipped = [figures.skipped for figures in self._recent]
        drawn = [curve(f"skipped {last.skipped:.0%}", skipped, 1.0, "100%", self._window, px)]
        if last.gflops:
            saved = [dense - executed for executed, dense in (f.gflops for f in self._recent if f.gflops)]
            _, dense = last.gflops
            full = f"{dense:.2f}"
            title = f"saved {f'{saved[-1]:.2f}'.rjust(len(full), FIGURE_SPACE)} of {full} GFLOPs"
            drawn.append(curve(title, saved, dense, full, self._window, px))
        return drawn
