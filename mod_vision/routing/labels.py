"""The labels of a forward, told to the routers and layers that place windows by them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Size = tuple[int, int]

_labels = threading.local()


@contextmanager
def labelled(cells: Callable[[Size], torch.Tensor]) -> Iterator[None]:
    """Tell the forwards of this thread where the objects of their images are.

    Args:
        cells: Gives, for a size (h, w), how much each cell (B, h, w) counts as an object, 0 where none is.
    """
    before = getattr(_labels, "cells", None)
    _labels.cells = cells
    try:
        yield
    finally:
        _labels.cells = before


def label_cells(size: Size) -> torch.Tensor | None:
    """Return how much each cell (B, h, w) counts as an object, None where no labels are known."""
    cells = getattr(_labels, "cells", None)
    return None if cells is None else cells(size)
