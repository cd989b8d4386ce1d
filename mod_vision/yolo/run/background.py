"""What changed in the frames of a still camera: each against a background that follows slowly.

Each square of the picture keeps a mean and how much it wavers. A square has changed if it is off its mean by more than
it wavers, and by more than noise and compression do. The picture's own change of brightness, by exposure or clouds, is
taken out before.
"""

from __future__ import annotations

import cv2
import numpy as np

from mod_vision.routing.zone import GRID

RATE, SLOW = 1 / 16, 1 / 128  # of a frame in the background, where nothing changed and where something did
FIRST = 8  # frames in which the background learns fast
LEVELS = 8.0  # of 255: what noise and compression change at most
SIGMAS = 4.0  # times what a square wavers
BRIGHTER = 2.0  # times as bright, or as dark: more is another scene, such as a lamp that goes out
DARK = 16.0  # levels below which ratios say nothing
SPARSE = 4  # every fourth square, of every fourth row, tells the brightness
NEIGHBOURS = 2  # squares of 3 by 3 that have changed, or it is a speck
CUT = 0.6  # of the picture: another scene, or the camera has moved


class Background:
    """The background of one camera, (GRID, GRID, 3) squares of the picture.

    Attributes:
        seen: Frames since the scene began.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.mean = self.wavers = np.zeros((GRID, GRID, 3), np.float32)

    def changed(self, frame: np.ndarray) -> np.ndarray | None:
        """Take in a frame, and return which squares of it have changed, (GRID, GRID) bool; None for a new scene.

        Args:
            frame: (H, W, 3) uint8 of any size.
        """
        squares = _squares(frame)
        if not self.seen or squares.shape != self.mean.shape:
            self._begin(squares)
            return None
        off = squares - self.mean * self._brighter(squares)
        limit = np.maximum(LEVELS, SIGMAS * self.wavers)
        moved = (np.abs(off) > limit).any(2)
        around = cv2.boxFilter(moved.astype(np.float32), -1, (3, 3), normalize=False)
        moved &= around >= NEIGHBOURS
        if moved.mean() > CUT:
            self._begin(squares)
            return None
        self._follow(off, moved)
        return moved

    def _begin(self, squares: np.ndarray) -> None:
        """Start from a frame."""
        self.seen, self.mean, self.wavers = 1, squares, np.full_like(squares, LEVELS / SIGMAS)

    def _brighter(self, squares: np.ndarray) -> np.ndarray:
        """Return by which factor each channel is brighter than the background, (channels,): the median of squares."""
        some, mean = (values[::SPARSE, ::SPARSE] for values in (squares, self.mean))
        ratios, lit = (some + 1) / (mean + 1), (mean > DARK).all(2)
        if lit.mean() < 0.1:
            return np.ones(squares.shape[2], np.float32)
        return np.median(ratios[lit], 0).clip(1 / BRIGHTER, BRIGHTER).astype(np.float32)

    def _follow(self, off: np.ndarray, moved: np.ndarray) -> None:
        """Move the background towards a frame that is `off` it."""
        self.seen += 1
        rate = np.where(moved, SLOW, max(RATE, 1 / self.seen) if self.seen <= FIRST else RATE)[..., None]
        self.mean = self.mean + rate.astype(np.float32) * off
        self.wavers = self.wavers + rate.astype(np.float32) * (np.abs(off) - self.wavers)


def _squares(frame: np.ndarray) -> np.ndarray:
    """Return the mean of each square of a frame, (GRID, GRID, channels) float32; of large frames, of some pixels."""
    while min(frame.shape[:2]) >= 4 * GRID or max(frame.shape[:2]) > 8 * GRID:
        frame = frame[::2, ::2]
    twice = cv2.resize(frame, (2 * GRID, 2 * GRID), interpolation=cv2.INTER_LINEAR)
    squares = cv2.resize(twice, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    return squares.reshape(GRID, GRID, -1)
