"""Parts of the picture that never come to rest, as water and leaves do not: those are looked at in every fourth frame.

An object that is found there goes on being computed in each frame; one that comes is found three frames later at most.
"""

from __future__ import annotations

import numpy as np

from mod_vision.routing.zone import GRID

EVERY = 4  # frames
RATE, OFTEN = 1 / 8, 0.8  # of a frame in the mean; share of the frames in which a part moves that is restless


class Restless:
    """Which parts of the picture move all the time.

    Args:
        parts: Squares of the picture, each part as rows and columns.
    """

    def __init__(self, parts: list[tuple[slice, slice]]) -> None:
        self.parts = parts
        self.often = np.zeros(len(parts))  # share of the last frames in which it moved
        self._frame = 0

    def take(self, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the squares of restless parts, and of those of them that are looked at now, both (GRID, GRID) bool.

        Args:
            changed: (GRID, GRID) bool, squares that have changed.
        """
        self._frame += 1
        moves = np.array([changed[part].any() for part in self.parts], float)
        self.often += RATE * (moves - self.often)
        rests, turn = np.zeros((2, GRID, GRID), bool)
        for i in np.flatnonzero(self.often >= OFTEN):
            rests[self.parts[i]] = True
            turn[self.parts[i]] = (self._frame + i) % EVERY == 0
        return rests, turn
