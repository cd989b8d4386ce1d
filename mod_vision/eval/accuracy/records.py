"""Rows by category: the last ones in memory, those before in a file per category."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

LIMIT = 64 << 20  # bytes in memory


class Records:
    """Rows that are added in any order and read category by category, whose memory does not grow with their number."""

    def __init__(self, dtype: np.dtype, limit: int = LIMIT) -> None:
        """Start without rows.

        Args:
            dtype: Of the rows; it has an integer field `category`.
            limit: Bytes of rows in memory, beyond which they go to a temporary folder.
        """
        self.dtype, self.limit = dtype, limit
        self._recent: list[np.ndarray] = []
        self._bytes = 0
        self._in_order = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add rows."""
        self._recent.append(rows)
        self._in_order = False
        self._bytes += rows.nbytes
        if self._bytes > self.limit:
            self._spill()

    def of(self, category: int) -> np.ndarray:
        """Return the rows of a category in the order they were added."""
        recent = self._sorted()
        start, stop = np.searchsorted(recent["category"], (category, category + 1))
        file = Path(self._folder.name) / str(category) if self._folder else None
        if file is None or not file.is_file():
            return recent[start:stop]
        return np.concatenate([np.fromfile(file, self.dtype), recent[start:stop]])

    def _sorted(self) -> np.ndarray:
        """Return the rows in memory, sorted by category."""
        if not self._in_order:
            rows = np.concatenate([np.empty(0, self.dtype), *self._recent])
            self._recent = [rows[np.argsort(rows["category"], kind="stable")]]
            self._in_order = True
        return self._recent[0]

    def _spill(self) -> None:
        """Append the rows in memory to the files of their categories."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="mod-vision-")
        rows = self._sorted()
        for category in np.unique(rows["category"]).tolist():
            start, stop = np.searchsorted(rows["category"], (category, category + 1))
            with (Path(self._folder.name) / str(category)).open("ab") as file:
                file.write(rows[start:stop].tobytes())
        self._recent, self._bytes, self._in_order = [], 0, False
