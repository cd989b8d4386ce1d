"""Which tokens are padding: the gray border that fits an image into a batch holds nothing to see.

Nothing but the image is asked, so exports know it too: rows and columns at its border are padding where every pixel of
every channel is the gray that Ultralytics pads with. A border of exactly this gray that a photo has itself looks the
same to the network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mod_vision.routing.shrink import shrunk

EDGES = 8  # px to a position in which windows look for padding: cells are whole numbers of them
GRAY = 114 / 255
TOLERANCE = 0.4 / 255  # less than half a level of 8 bits, more than bfloat16 rounds by

_running = threading.local()


class Frame:
    """The images (B, C, H, W) of a forward, in [0, 1]. They are looked at once, and only if a layer asks."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self._edges: tuple[torch.Tensor, ...] | None = None
        self.shrunk: Frame | None = None  # as `shrunk_frame` gives it

    def edges(self) -> tuple[torch.Tensor, ...]:
        """Return the first and last row, and column, that hold something else than padding, each (B, 1)."""
        if self._edges is None:
            images = self.images.detach().contiguous()  # reducing channels that lie side by side is slow
            high, low = images.amax(1), images.amin(1)
            self._edges = *_ends(high.amax(2), low.amin(2)), *_ends(high.amax(1), low.amin(1))
        return self._edges

    def inside(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return which tokens of a grid of rows and columns are more than padding, (B, N)."""
        top, bottom, left, right = self.edges()
        rows = _reached(grid[0], self.images.shape[2], top, bottom)
        cols = _reached(grid[1], self.images.shape[3], left, right)
        return (rows[:, :, None] & cols[:, None, :]).flatten(1)


def _ends(high: torch.Tensor, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and last lines, each (B, 1), whose highest and lowest values (B, lines) are not both gray."""
    lines = torch.arange(high.shape[1], device=high.device)
    filled = (high > GRAY + TOLERANCE) | (low < GRAY - TOLERANCE)
    first = torch.where(filled, lines, high.shape[1]).amin(1, keepdim=True)
    return first, torch.where(filled, lines, -1).amax(1, keepdim=True)


def _reached(cells: int, pixels: int, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return which of the cells that divide an axis hold one of its pixels from `first` to `last`, (B, cells)."""
    cell = torch.arange(cells, device=first.device)
    return ((cell + 1) * pixels > first * cells) & (cell * pixels < (last + 1) * cells)


@contextmanager
def padded_images(images: torch.Tensor) -> Iterator[None]:
    """Tell the routed layers that this thread runs which images (B, C, H, W) the forward is about."""
    before = getattr(_running, "frame", None)
    _running.frame = Frame(images)
    try:
        yield
    finally:
        _running.frame = before


def tokens_inside(grid: tuple[int, int]) -> torch.Tensor | None:
    """Return which tokens are more than padding, (B, N), None in a forward whose images are not known."""
    frame = getattr(_running, "frame", None)
    return None if frame is None else frame.inside(grid)


def running_images() -> torch.Tensor | None:
    """Return the images (B, C, H, W) of the forward that this thread runs, None if they are not known."""
    frame = getattr(_running, "frame", None)
    return None if frame is None else frame.images


def shrunk_frame(images: torch.Tensor, half: torch.Tensor | None = None) -> Frame:
    """Return images (B, C, H, W) at an eighth of their side: a shrunk frame costs less to look at.

    Those of the forward that this thread runs are shrunk once.

    Args:
        images: The images.
        half: The same at half their side, if that is known.
    """
    running: Frame | None = getattr(_running, "frame", None)
    whole = running if running is not None and running.images is images else Frame(images)
    if whole.shrunk is None:
        whole.shrunk = Frame(shrunk(images, EDGES) if half is None else shrunk(half, EDGES // 2))
    return whole.shrunk


def without_padding(logits: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Return scores (B, N) with those of padding below all others."""
    return logits if inside is None else logits.masked_fill(~inside, -torch.inf)
