"""Health of a router: do its routes follow the image, or have they collapsed to one pattern?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from mod_vision.routing.plan import RoutingPlan

SAME_ROUTES = 0.05  # least healthy variance; what a trained router has on street scenes is 0.3 and more


class RouteHealth(NamedTuple):
    """Figures of one layer over many images, each in [0, 1].

    Attributes:
        routed: Share of tokens that were routed.
        entropy: Entropy of the positions of routed tokens over log(N): 1 if all positions are routed equally often.
        variance: Variance of a position's selection across images, over that of independent draws, c (1 - c): 0 if all
            images have the same routes.
        never: Share of positions that no image routed.
    """

    routed: float
    entropy: float
    variance: float
    never: float

    @property
    def alarm(self) -> str | None:
        """What is wrong, or None."""
        if self.variance < SAME_ROUTES and self.routed < 1:
            return (
                f"routes are the same for all images (variance {self.variance:.3f} of 1, {100 * self.never:.0f} % of "
                "the positions never routed)"
            )
        return None


class RouteStatistics:
    """Count on the device, without synchronisation, how often each position is routed."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int], torch.Tensor] = {}
        self.images: dict[tuple[int, int], int] = {}

    def update(self, plan: RoutingPlan) -> None:
        """Count the routed tokens of a batch; grids of different sizes are counted apart."""
        grid, logits = plan.grid, plan.logits
        if grid not in self.counts:
            self.counts[grid] = torch.zeros(logits.shape[1], device=logits.device)
            self.images[grid] = 0
        indices = plan.indices.flatten()
        self.counts[grid].index_add_(0, indices, torch.ones(len(indices), device=logits.device))
        self.images[grid] += len(logits)

    def health(self) -> RouteHealth | None:
        """Return the figures, the mean over grids by images, or None if nothing was counted."""
        total = sum(self.images.values())
        if not total:
            return None
        parts = [(self.images[grid] / total, self._of_grid(grid)) for grid in self.counts]
        return RouteHealth(*(sum(weight * part[i] for weight, part in parts) for i in range(4)))

    def _of_grid(self, grid: tuple[int, int]) -> RouteHealth:
        """Return the figures of one size of grid."""
        share = (self.counts[grid] / self.images[grid]).double()
        c = float(share.mean())
        places = share / share.sum()
        entropy = float(-torch.xlogy(places, places).sum()) / max(math.log(len(share)), 1e-12)
        variance = float((share * (1 - share)).mean()) / max(c * (1 - c), 1e-12)
        return RouteHealth(c, entropy, variance, float((share == 0).double().mean()))
