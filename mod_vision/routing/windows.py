"""Routed windows: the part of an image that a whole network runs on.

The tokens are the cells of an image, squares of 32 px. A router scores them; k windows of several cells are placed
where most score is left (`placing.py`); the network runs on the batch of windows; what it says of a cell is taken from
the window in which the cell lies deepest. `WindowPlan` moves values to the windows (`take`) and back (`put`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

CELL = 32  # px
MARGIN = 8  # px: what lies nearer to the border of a window is not taken from it
ENDLESS = 1 << 24  # quarters of a px: how far a border of the image is, behind which there is nothing to miss


class WindowPlan(NamedTuple):
    """Where the windows of a batch are, and how well the router thinks of each cell.

    Attributes:
        logits: (B, N) router scores of the cells.
        corners: (B, k, 2) row and column of the first cell of each window, in the order in which they were placed.
        size: (h, w), cells of the image: N = h * w.
        window: Rows and columns of a window, in cells.
        cell: Side of a cell in px.
        real: (B, k) False where an image needs fewer than k windows, None if none does. Such a window is not computed.
        inside: (B, N) False where a cell is padding, None if that is not known.
        whole: (B,) True where the image is run as a whole, which takes less time than its windows; None if none is.
        classes: (B, classes, N) scores of the cells by class, None of a router that tells none.
    """

    logits: torch.Tensor
    corners: torch.Tensor
    size: tuple[int, int]
    window: tuple[int, int]
    cell: int = CELL
    real: torch.Tensor | None = None
    inside: torch.Tensor | None = None
    whole: torch.Tensor | None = None
    classes: torch.Tensor | None = None

    @property
    def guesses(self) -> torch.Tensor:
        """What the router says of the cells by class, (B, classes, N), else of any object, (B, 1, N)."""
        return self.logits[:, None] if self.classes is None else self.classes

    @property
    def width(self) -> int:
        """Windows that the batch has of each image."""
        return self.corners.shape[1]

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the cells at which a window can begin."""
        return self.size[0] - self.window[0] + 1, self.size[1] - self.window[1] + 1

    @property
    def window_share(self) -> float:
        """Share of the image's pixels that a window computes."""
        return self.window[0] * self.window[1] / (self.size[0] * self.size[1])

    @property
    def share(self) -> float:
        """Share of the batch's pixels that is computed; overlaps count twice."""
        return self.width * self.window_share if self.whole is None else float(self.shares().mean())

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the windows (B * k, C, wh, ww) of images or maps (B, C, H, W); only real ones, if some are not.

        The result has the memory format of `x`. Whole runs of pixels are copied, one for each row of a cell.
        """
        side = x.shape[2] // self.size[0]
        wh, ww = self.window
        rows = self._lines(0, self.cell // side)  # (B, k, wh * side)
        runs = (rows[..., None] * self.size[1] + self.corners[:, :, 1, None, None] + arange(ww, x)).flatten(2)
        if is_channels_last(x):
            flat = x.permute(0, 2, 3, 1).reshape(-1, side * x.shape[1])
            taken = flat.index_select(0, self._of_batch(runs, x.shape[2] * self.size[1]))
            return taken.view(-1, wh * side, ww * side, x.shape[1]).permute(0, 3, 1, 2)
        planes = self._of_batch(runs, x.shape[1] * x.shape[2] * self.size[1]).view(-1, 1, runs.shape[2])
        planes = planes + arange(x.shape[1], x)[:, None] * (x.shape[2] * self.size[1])
        taken = x.reshape(-1, side).index_select(0, planes.flatten())
        return taken.view(-1, x.shape[1], wh * side, ww * side)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """View what the windows gave (windows, ...) as (B, k, ...); windows that were not computed give 0."""
        b, k = self.corners.shape[:2]
        if self.real is None:
            return values.view(b, k, *values.shape[1:])
        full = values.new_zeros(b * k, *values.shape[1:])
        return full.index_copy(0, self.real.flatten().nonzero()[:, 0], values).view(b, k, *values.shape[1:])

    def positions(self, strides: Sequence[int]) -> torch.Tensor:
        """Return where each position of the windows lies among those of the full maps, (B, k, A).

        Args:
            strides: Px between the positions of each map; A counts those of a window over all maps, in raster order.
        """
        found, offset = [], 0
        for stride in strides:
            rows, cols = self._lines(0, stride), self._lines(1, stride)
            height, width = (n * self.cell // stride for n in self.size)
            found.append((rows[..., :, None] * width + cols[..., None, :]).flatten(2) + offset)
            offset += height * width
        return torch.cat(found, 2)

    def cells_of(self, strides: Sequence[int]) -> torch.Tensor:
        """Return the number of the cell in which each position of the windows lies, (B, k, A), as `positions`."""
        found = []
        for stride in strides:
            side = self.cell // stride
            rows, cols = (torch.div(self._lines(axis, stride), side, rounding_mode="trunc") for axis in (0, 1))
            found.append((rows[..., :, None] * self.size[1] + cols[..., None, :]).flatten(2))
        return torch.cat(found, 2)

    def centres(self, strides: Sequence[int]) -> torch.Tensor:
        """Return x and y of the centre of each position on its full map, in its positions, (B, 2, k * A)."""
        found = []
        for stride in strides:
            y, x = self._lines(0, stride)[..., :, None], self._lines(1, stride)[..., None, :]
            found.append(
                torch.stack((x.expand(-1, -1, y.shape[2], -1), y.expand(-1, -1, -1, x.shape[3])), 1).flatten(3)
            )
        return torch.cat(found, 3).flatten(2) + 0.5

    def owned(self, strides: Sequence[int], margin: int = MARGIN) -> torch.Tensor:
        """Return which positions belong to their window, (B, k, A): no position of the full maps to two.

        A position belongs to the window in which it lies deepest, the earlier one of equals, if it is at least `margin`
        px deep; borders of the image do not count.
        """
        if not self.width:
            return self.positions(strides) < 0
        (mine_y, other_y), (mine_x, other_x) = self._depths(0, strides), self._depths(1, strides)
        found, row, col = [], 0, 0
        for stride in strides:
            height, width = (n * self.cell // stride for n in self.window)
            rows, cols = slice(row, row + height), slice(col, col + width)
            mine = torch.minimum(mine_y[..., rows, None], mine_x[..., None, cols])  # (B, k, h, w)
            other = torch.minimum(other_y[..., rows, None], other_x[..., None, cols])  # (B, k, k, h, w)
            found.append((mine >= other.amax(2).clamp(min=4 * margin)).flatten(2))
            row, col = rows.stop, cols.stop
        owned = torch.cat(found, 2)
        return owned if self.real is None else owned & self.real[..., None]

    def put(
        self, values: torch.Tensor, strides: Sequence[int], fill: float = 0.0, margin: int = MARGIN
    ) -> torch.Tensor:
        """Return the full maps (B, C, positions) of what the windows gave (windows, C, A), by the owner rule.

        Args:
            values: What the windows gave at each of their positions.
            strides: Px between the positions of each map, in the order of the A positions.
            fill: What positions get that belong to no window.
            margin: As in `owned`.
        """
        places = sum((self.cell // s) ** 2 for s in strides) * self.size[0] * self.size[1]
        where = torch.where(self.owned(strides, margin), self.positions(strides), places).flatten(1)
        rows = self.spread(values).transpose(2, 3).flatten(1, 2)  # (B, k * A, C)
        batch = arange(rows.shape[0], where)[:, None] * (places + 1)  # the last place is for what nobody owns
        full = rows.new_full((rows.shape[0] * (places + 1), rows.shape[2]), fill)
        full = full.index_copy(0, (where + batch).flatten(), rows.flatten(0, 1))
        return full.view(rows.shape[0], places + 1, -1)[:, :places].transpose(1, 2)

    def put_map(self, maps: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Return the full map (B, C, H, W) of the maps of the windows (windows, C, h, w), by the owner rule."""
        side = maps.shape[2] // self.window[0]
        full = self.put(maps.flatten(2), (self.cell // side,), fill, margin=0)
        return full.unflatten(2, (self.size[0] * side, self.size[1] * side))

    def to_map(self, values: torch.Tensor) -> torch.Tensor:
        """View values of cells (B, N) as a map (B, h, w)."""
        return values.view(-1, *self.size)

    def rectangles(self, image: int) -> torch.Tensor:
        """Return what is computed of an image of the batch, (n, 4): first row and column, rows and columns of cells."""
        if self.whole is not None and self.whole[image]:
            return self.corners.new_tensor([[0, 0, *self.size]])
        corners = self.corners[image] if self.real is None else self.corners[image, self.real[image]]
        return torch.cat((corners, corners.new_tensor(self.window).expand_as(corners)), 1)

    def counts(self) -> torch.Tensor:
        """Return how many windows each image has, (B,), also where it is run as a whole instead."""
        real = torch.ones_like(self.corners[:, :, 0], dtype=torch.bool) if self.real is None else self.real
        return real.sum(dim=1)

    def shares(self) -> torch.Tensor:
        """Return the share of its pixels that is computed of each image, (B,); overlaps count twice."""
        shares = self.counts() * self.window_share
        return shares if self.whole is None else shares.masked_fill(self.whole, 1.0)

    def covered(self) -> torch.Tensor:
        """Return by how many windows each cell is computed, (B, h, w); once in an image that is run as a whole."""
        rows, cols = (_between(self.corners[:, :, axis], self.window[axis], self.size[axis]) for axis in (0, 1))
        inside = rows[..., :, None] & cols[..., None, :]
        if self.real is not None:
            inside = inside & self.real[..., None, None]
        covered = inside.sum(dim=1)
        return covered if self.whole is None else covered.masked_fill(self.whole[:, None, None], 1)

    def kept(self) -> torch.Tensor:
        """Return the cells that are computed as a boolean map (B, h, w)."""
        return self.covered() > 0

    def passed(self, capacities: Sequence[float], blocks: int) -> torch.Tensor:
        """Return how many of a layer's `blocks` each cell passed, (B, h, w)."""
        return self.kept() * blocks

    def _lines(self, axis: int, stride: int) -> torch.Tensor:
        """Return the rows (axis 0) or columns of a full map that each window covers, (B, k, n)."""
        side = self.cell // stride
        return self.corners[:, :, axis, None] * side + arange(self.window[axis] * side, self.corners)

    def _of_batch(self, runs: torch.Tensor, per_image: int) -> torch.Tensor:
        """Return the runs (B, k, n) of each image as runs of the batch, in one row, without those not computed."""
        runs = runs + arange(runs.shape[0], runs)[:, None, None] * per_image
        return (runs if self.real is None else runs[self.real]).flatten()

    def _depths(self, axis: int, strides: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how deep the lines of each window, of all strides, lie in it (B, k, n), and in all (B, k, k, n).

        In quarters of a px, so that all depths are even numbers; those in an earlier window are one more, since it is
        the deeper of equals. Lines outside of a window have a depth below 0.
        """
        cell, side = 4 * self.cell, 4 * self.cell * self.window[axis]
        lines = [torch.arange(2 * s, side, 4 * s, device=self.corners.device) for s in strides]
        first = self.corners[:, :, axis] * cell
        last = first + side
        line = first[..., None] + (lines[0] if len(lines) == 1 else torch.cat(lines))
        low = first.masked_fill(first == 0, -ENDLESS)[..., None]
        high = last.masked_fill(last == cell * self.size[axis], ENDLESS)[..., None]
        mine = torch.minimum(line - low, high - line)
        other = torch.minimum(line[:, :, None] - low[:, None], high[:, None] - line[:, :, None])
        k = arange(self.corners.shape[1], self.corners)
        other = other + (k[:, None] > k)[..., None]
        if self.real is not None:
            other = other.masked_fill(~self.real[:, None, :, None], -1)
        return mine, other


def _between(first: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Return which lines of `size` lie in the `count` from `first` (...), (..., size)."""
    lines = arange(size, first)
    return (lines >= first[..., None]) & (lines < first[..., None] + count)


def arange(n: int, like: torch.Tensor) -> torch.Tensor:
    """Return 0 to n - 1 on the device of `like`."""
    return torch.arange(n, device=like.device)


def is_channels_last(x: torch.Tensor) -> bool:
    """Return whether the channels of a pixel lie side by side."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
