"""Messages of errors that others raised, for one line of ours."""

from __future__ import annotations


def one_line(error: BaseException, limit: int = 600) -> str:
    """Return the message of an error on one line, cut where it is long, its kind if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]} ..."
