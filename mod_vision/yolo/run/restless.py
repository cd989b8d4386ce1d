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
        self.waits = np.zeros(len(parts), int)  # frames since it was looked at
        self.due = 0.0  # parts whose turn it is

    def take(self, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the squares of restless parts, and of those of them that are looked at now, both (GRID, GRID) bool.

        Those that have waited longest, as many in each frame as it takes for all to have their turn.

        Args:
            changed: (GRID, GRID) bool, squares that have changed.
        """
        moves = np.array([changed[part].any() for part in self.parts], float)
        self.often += RATE * (moves - self.often)
        restless = self.often >= OFTEN
        self.waits = np.where(restless, self.waits + 1, 0)
        self.due += int(restless.sum()) / EVERY
        now = self.waits >= EVERY
        now[np.argsort(-self.waits, kind="stable")[: int(self.due)]] = True
        self.due = max(self.due - int(now.sum()), 0.0)
        self.waits[now] = 0
        rests, turn = np.zeros((2, GRID, GRID), bool)
        for i in np.flatnonzero(restless):
            rests[self.parts[i]] = True
            turn[self.parts[i]] = now[i]
        return rests, turn
