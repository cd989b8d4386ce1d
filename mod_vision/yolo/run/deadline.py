"""A deadline for frames: how many windows fit into it, by the time that the frames before took."""

from __future__ import annotations

from collections import deque

import numpy as np

KNOWN = 64  # frames that count
LATE = 90  # percentile of how much later frames were than by the windows they had


class Deadline:
    """Windows that a frame may have.

    A frame takes some time whatever it computes, and some for each window; both are fitted to the frames before.

    Args:
        ms: Milliseconds that a frame may take.
    """

    def __init__(self, ms: float) -> None:
        self.ms = ms
        self._seen: deque[tuple[float, float]] = deque(maxlen=KNOWN)

    def add(self, windows: float, ms: float) -> None:
        """Learn from a frame that had some windows and took some milliseconds."""
        self._seen.append((windows, ms))

    def most(self) -> int | None:
        """Return how many windows fit, at least one; None before anything is known."""
        if not self._seen:
            return None
        windows, times = np.array(self._seen, float).T
        if np.ptp(windows):
            each, base = np.polyfit(windows, times, 1)
        else:  # nothing tells them apart yet: the windows take all of the time, which more of them would at most
            each, base = np.median(times) / max(windows[0], 1), 0.0
        each = max(each, 1e-3 * self.ms)
        late = max(float(np.percentile(times - base - each * windows, LATE)), 0.0)
        return max(int((self.ms - base - late) // each), 1)
