"""Parts of the picture in turn, so that each is computed again in time."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np

from mod_vision.routing.placing import window_cells
from mod_vision.routing.windows import WindowPlan
from mod_vision.routing.zone import GRID

TOGETHER = 3  # parts that are computed at a time: a forward costs as much as two windows, whatever it computes


class Turns:
    """Which parts of the picture are due.

    Parts add up to what is due from frame to frame. Where the network runs anyway, all that are due run with it; where
    it does not, they wait until there are enough for a forward of their own.

    Args:
        parts: Squares of the picture, each part as rows and columns.
        refresh: Frames after which each part is computed again at the latest.
    """

    def __init__(self, parts: list[tuple[slice, slice]], refresh: int) -> None:
        self.parts = parts
        self.together = min(TOGETHER, len(parts))
        self.each = (len(parts) + self.together) / refresh  # as many as wait longest count as computed late
        self.due, self.next = 0.0, 0

    def take(self, runs: bool) -> np.ndarray:
        """Return the squares that are computed again in this frame, (GRID, GRID) bool.

        Args:
            runs: Whether the network runs in this frame anyway.
        """
        mask = np.zeros((GRID, GRID), bool)
        self.due = min(self.due + self.each, len(self.parts))
        if runs or self.due >= self.together:
            for _ in range(int(self.due)):
                mask[self.parts[self.next]] = True
                self.next = (self.next + 1) % len(self.parts)
            self.due %= 1
        return mask


def parts_of(plan: WindowPlan, window: int) -> list[tuple[slice, slice]]:
    """Return parts of the picture, in squares, each of which a window of a side in px covers."""
    lines = []
    for cells, side in zip(plan.size, window_cells(window, plan.size, plan.cell), strict=True):
        step = max(side - 1, 1)
        ends = [*range(0, max(cells - 1, 1), step), cells]
        lines.append([slice(*(int(end * GRID / cells + 0.5) for end in pair)) for pair in pairwise(ends)])
    return list(product(*lines))
