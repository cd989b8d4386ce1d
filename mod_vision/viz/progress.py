"""One line that tells how far a video is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

TERMINAL, LOG = 0.2, 10.0  # seconds between two states: on a terminal they replace each other, in a log they add up


class Progress:
    """Prints `label: frame n/total`, not more often than one can read it.

    Args:
        label: What is at work.
        total: Number of frames, None if nobody knows.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self.label = label
        self.of = f"/{total}" if total else ""
        self.terminal = sys.stdout.isatty()
        self.last = time.monotonic() if not self.terminal else 0.0

    def over(self, things: Iterable[T]) -> Iterator[T]:
        """Yield the frames, or what stands for them, and show after each how many are done."""
        for done, thing in enumerate(things, 1):
            yield thing
            self._show(done)

    def _show(self, done: int) -> None:
        """Show that `done` are done, if it is time."""
        now = time.monotonic()
        if now - self.last >= (TERMINAL if self.terminal else LOG):
            self.last = now
            text = f"{self.label}: frame {done}{self.of}"
            print(f"\r{text}\033[K" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def clear(self) -> None:
        """Make room for the next line."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)
