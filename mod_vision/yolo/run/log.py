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


def progress_bar(label: str, total: int | None, unit: str, things: Iterable[Any] | None = None) -> TQDM:
    """Return Ultralytics' progress bar: in place on a terminal, from which it is cleared in the end; none in a log.

    Args:
        label: What is at work.
        total: Number of steps, None if nobody knows.
        unit: What a step is.
        things: What to iterate over, if the bar is not told by `update`.
    """
    return TQDM(things, label, total, leave=False, disable=None if sys.stdout.isatty() else True, unit=unit)
