"""What Ultralytics says while it writes under a temporary name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ultralytics.utils import LOGGER


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
