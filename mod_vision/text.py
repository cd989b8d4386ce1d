"""Names that others chose, of classes and files, as text that does nothing but show them."""

from __future__ import annotations

import unicodedata

MAX_LETTERS = 4096  # as many as a path may have
PLOT_LETTERS = 80
FORMULA = ("=", "+", "-", "@")  # what makes a spreadsheet take a cell for a formula
STEM_BYTES = 120  # of the 255 that a file name may have: others lengthen it


def printable(text: object, limit: int = MAX_LETTERS) -> str:
    r"""Return a text on one line, for terminals and pictures: control characters are written out, as in `\x1b`.

    Args:
        text: The text, or what has one.
        limit: Most letters; of a longer text the beginning is left, with `...` behind it.
    """
    letters = str(text)
    cut = letters if len(letters) <= limit else f"{letters[: limit - 3]}..."
    return "".join(c if c.isprintable() else _written_out(c) for c in cut)


def in_plot(text: object) -> str:
    """Return a text for matplotlib, which would take `$` for the beginning of a formula."""
    return printable(text, PLOT_LETTERS).replace("$", r"\$")


def in_csv(value: object) -> object:
    """Return a cell of a CSV; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value, limit=len(value))
    return f"'{text}" if text.startswith(FORMULA) else text


def short_stem(stem: str) -> str:
    """Return the beginning of the name of a file that fits into the name of another one, which has more behind it."""
    return stem.encode("utf-8", "surrogateescape")[:STEM_BYTES].decode("utf-8", "ignore")


def _written_out(character: str) -> str:
    """Return a space for those of other widths, and the escape for what is not printable."""
    return " " if unicodedata.category(character) == "Zs" else character.encode("unicode_escape").decode()
