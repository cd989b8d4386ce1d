"""Zones: the parts of a picture that are looked at. Cells and detections outside of them do not count.

A zone is a grid over the picture, without the padding around it. It is kept as the sums above and left of each corner,
so that what lies in any rectangle is four reads, in exports too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mod_vision.routing.padding import Frame
from mod_vision.routing.windows import arange

GRID = 256  # squares along each side of a picture


class Extent(NamedTuple):
    """Where the pictures lie in the images of a batch.

    Attributes:
        first: (B, 2) row and column at which each begins, as a share of the image's sides.
        sides: (B, 2) its height and width, as a share of them.
    """

    first: torch.Tensor
    sides: torch.Tensor


def extent_of(frame: Frame) -> Extent:
    """Return where the pictures of a batch lie, by the padding around them."""
    top, bottom, left, right = frame.edges()
    ends, pixels = torch.cat((top, left), 1), frame.images.shape[2:]
    shape = torch.stack([torch.full_like(ends[:, 0], n) for n in pixels], 1).float()
    return Extent(ends / shape, (torch.cat((bottom, right), 1) + 1 - ends).clamp(min=1) / shape)


def whole_extent(x: torch.Tensor) -> Extent:
    """Return the extent of pictures that fill their images (B, ...)."""
    return Extent(torch.zeros(len(x), 2, device=x.device), torch.ones(len(x), 2, device=x.device))


def sums_of(masks: torch.Tensor) -> torch.Tensor:
    """Return the sums above and left of each corner, (S, GRID + 1, GRID + 1), of squares (S, GRID, GRID)."""
    sums = torch.zeros(len(masks), GRID + 1, GRID + 1, dtype=torch.int32, device=masks.device)
    sums[:, 1:, 1:] = masks.int().cumsum(1).cumsum(2)
    return sums


def mask_of(sums: torch.Tensor) -> torch.Tensor:
    """Return the squares (GRID, GRID) of a zone, True inside, of which there are the sums (GRID + 1, GRID + 1)."""
    return sums.diff(dim=0).diff(dim=1) > 0


def cells_in(sums: torch.Tensor, size: tuple[int, int], extent: Extent) -> torch.Tensor:
    """Return which cells of images hold a square of their zone, (B, N); the arguments are those of `squares_in`."""
    return squares_in(sums, size, extent) > 0


def squares_in(sums: torch.Tensor, size: tuple[int, int], extent: Extent) -> torch.Tensor:
    """Return the sum of the squares in each cell of images, (B, N) int; a square belongs to one cell.

    Args:
        sums: As `sums_of` gives them, of one zone for all images or of one for each.
        size: Rows and columns of cells, at most GRID.
        extent: Where the pictures lie.
    """
    rows, cols = (_squares(_lines(arange(n + 1, sums) / n, extent, axis) + 0.5) for axis, n in enumerate(size))
    top, bottom = rows[:, :-1, None], rows[:, 1:, None]
    left, right = cols[:, None, :-1], cols[:, None, 1:]
    return _inside(sums, top, left, bottom, right).flatten(1)


def points_in(sums: torch.Tensor, points: torch.Tensor, extent: Extent) -> torch.Tensor:
    """Return which points of images lie in their zone, (B, n).

    Args:
        sums: As in `cells_in`.
        points: (B, n, 2) row and column of each, as a share of the image's sides.
        extent: Where the pictures lie.
    """
    row, col = (_squares(_lines(points[..., axis], extent, axis)).clamp(max=GRID - 1) for axis in (0, 1))
    return _inside(sums, row, col, row + 1, col + 1) > 0


def _lines(share: torch.Tensor, extent: Extent, axis: int) -> torch.Tensor:
    """Return places on an axis of images, (n,) or (B, n) shares of their side, in squares of the pictures, (B, n)."""
    return (share - extent.first[:, axis, None]) / extent.sides[:, axis, None] * GRID


def _squares(lines: torch.Tensor) -> torch.Tensor:
    """Return the squares in which places lie, and GRID behind the last."""
    return lines.floor().clamp(0, GRID).long()


def _inside(
    sums: torch.Tensor, top: torch.Tensor, left: torch.Tensor, bottom: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Return how many squares of the zone lie in rectangles, of which the ends are given as whole numbers."""
    flat = sums.flatten(1).expand(top.shape[0], -1)

    def read(row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
        at = row * (GRID + 1) + col
        return flat.gather(1, at.flatten(1)).view(at.shape)

    return read(bottom, right) - read(top, right) - read(bottom, left) + read(top, left)
