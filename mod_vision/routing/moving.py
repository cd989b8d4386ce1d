"""What moved in the frames of a still camera: which squares of the pictures are computed, and what each is worth."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mod_vision.routing.zone import Extent, squares_in, sums_of

LEAST = 0.5  # what a square is worth at least that is to be computed
STEPS = 64  # whole numbers to a worth of 1, of which sums are exact


class Moved(NamedTuple):
    """What of the pictures of a batch is to be computed.

    Attributes:
        worth: (B, GRID, GRID) float, 0 where nothing is to be computed, else from LEAST to 1: what comes first.
        sure: (B, GRID, GRID) bool, squares that are computed whatever a router says of them.
        most: Windows of an image at most, None for as many as it takes.
    """

    worth: torch.Tensor
    sure: torch.Tensor
    most: int | None = None


class MovedSums(NamedTuple):
    """The same as sums above and left of each corner, (B, GRID + 1, GRID + 1): of worth, number, and the sure ones."""

    worth: torch.Tensor
    number: torch.Tensor
    sure: torch.Tensor
    most: int | None

    def of(self, chosen: torch.Tensor) -> MovedSums:
        """Return those of some images (B,) of the batch."""
        return MovedSums(self.worth[chosen], self.number[chosen], self.sure[chosen], self.most)

    def cells(self, size: tuple[int, int], extent: Extent) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what cells of images are worth on the mean of their squares, 0 or from LEAST to 1, and which are sure.

        Args:
            size: Rows and columns of cells.
            extent: Where the pictures lie.

        Returns:
            (B, N) float and (B, N) bool.
        """
        worth, number, sure = (squares_in(sums, size, extent) for sums in (self.worth, self.number, self.sure))
        return worth / STEPS / number.clamp(min=1), sure > 0


def moved_sums(moved: Moved) -> MovedSums:
    """Return the sums of what moved."""
    worth = (moved.worth * STEPS).round().int()
    return MovedSums(sums_of(worth), sums_of(worth > 0), sums_of(moved.sure), moved.most)
