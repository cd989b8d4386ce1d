"""What is said while something is at work: Ultralytics' log and its progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ultralytics.utils import LOGGER, TQDM


class _Replace(logging.Filter):
    """Replaces a text in each line of the log."""

    def __init__(self, text: str, by: str) -> None:
        super().__init__()
        self.text, self.by = text, by

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace, and let the line through."""
        record.msg = str(record.msg).replace(self.text, self.by)
        return True


@contextmanager
def replaced_in_log(text: str, by: str) -> Iterator[None]:
    """Replace a text, such as a temporary name, in what Ultralytics logs."""
    replace = _Replace(text, by)
    LOGGER.addFilter(replace)
    try:
        yield
    finally:
        LOGGER.removeFilter(replace)


@contextmanager
def warnings_only() -> Iterator[None]:
    """Have Ultralytics log warnings and errors alone."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


class Steps:
    """Tells of the steps of a training: in place on a terminal, ten lines in a log.

    Args:
        label: What is trained.
        total: Number of steps.
        done: Those that were done before.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.every = -(-total // 10)
        self.bar = progress_bar(label, total, "step")
        self.bar.update(done)
        if done >= total:
            self.bar.close()

    def tell(self, loss: float) -> None:
        """Tell of one more step; `loss` is the mean of the last ones."""
        self.done += 1
        self.bar.update(1)
        self.bar.set_description(f"{self.label}, loss {loss:.4f}")
        if self.done == self.total:
            self.bar.close()
        if not sys.stdout.isatty() and (self.done % self.every == 0 or self.done == self.total):
            LOGGER.info(f"{self.label}: step {self.done} of {self.total}, loss {loss:.4f}")


def progress_bar(label: str, total: int | None, unit: str, things: Iterable[Any] | None = None) -> TQDM:
    """Return Ultralytics' progress bar: in place on a terminal, from which it is cleared in the end; none in a log.

    Args:
        label: What is at work.
        total: Number of steps, None if nobody knows.
        unit: What a step is.
        things: What to iterate over, if the bar is not told by `update`.
    """
    return TQDM(things, label, total, leave=False, disable=None if sys.stdout.isatty() else True, unit=unit)
