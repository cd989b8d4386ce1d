"""Messages of errors that others raised, for one line of ours."""

from __future__ import annotations

import re

from mod_vision.text import printable

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colours, which Ultralytics puts into messages


def one_line(error: BaseException, limit: int = 600) -> str:
    """Return the message of an error on one line without colours, cut where it is long, its kind if it has none."""
    return printable(" ".join(ANSI.sub("", str(error)).split()) or type(error).__name__, limit)
