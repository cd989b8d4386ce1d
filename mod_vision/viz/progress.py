"""One line that tells how far a long job is."""

from __future__ import annotations

import sys
import time

TERMINAL, LOG = 0.2, 10.0  # seconds between two states: on a terminal they replace each other, in a log they add up


class Progress:
    """Prints `label: unit n/total`, not more often than one can read it.

    Args:
        label: What is at work.
        total: How many there are, None if nobody knows.
        unit: Of what.
    """

    def __init__(self, label: str, total: int | None, unit: str = "frame") -> None:
        self.label, self.unit = label, unit
        self.of = f"/{total}" if total else ""
        self.terminal = sys.stdout.isatty()
        self.last = time.monotonic() if not self.terminal else 0.0

    def show(self, done: int) -> None:
        """Show that `done` are done."""
        now = time.monotonic()
        if now - self.last >= (TERMINAL if self.terminal else LOG):
            self.last = now
            text = f"{self.label}: {self.unit} {done}{self.of}"
            print(f"\r{text}\033[K" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def clear(self) -> None:
        """Make room for the next line."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)
