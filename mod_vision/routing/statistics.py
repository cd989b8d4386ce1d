"""Health of a router: do its routes depend on the image, or have they collapsed to one pattern?"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import torch

from mod_vision.measure import Measure
from mod_vision.routing.plan import RoutingPlan
from mod_vision.routing.windows import WindowPlan

Key = tuple[tuple[int, int], int]  # grid, and number of routed tokens or windows
SAME_ROUTES = 0.05  # least healthy variance; routers trained on CamVid have 0.5 to 0.6 without mosaic
FEW_IMAGES = 8  # too few to tell


class RouteHealth(NamedTuple):
    """Figures of one layer over many images; all but the first are in [0, 1].

    Attributes:
        images: Number of images.
        routed: Share of tokens that were routed.
        entropy: Entropy of the positions of routed tokens over log(N): 1 if all positions are routed equally often.
        variance: Variance of a position's selection across images, over that of independent draws, c (1 - c): 0 if all
            images have the same routes.
        never: Share of positions that no image routed.
    """

    images: int
    routed: float
    entropy: float
    variance: float
    never: float

    @property
    def alarm(self) -> str | None:
        """What is wrong, or None."""
        if self.images >= FEW_IMAGES and self.variance < SAME_ROUTES and self.routed < 1:
            return (
                f"routes are the same for all images (variance {self.variance:.3f} of 1, {100 * self.never:.0f} % of "
                "the positions never routed)"
            )
        return None


class RouteStatistics(Measure):
    """Count on the device, without synchronisation, how often each position is routed, and watch for NaN.

    Grids of different sizes are counted apart, and so are numbers of routed tokens: where the capacity changes between
    steps, that alone would look like routes that differ.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.counts: dict[Key, torch.Tensor] = {}
        self.images: dict[Key, int] = {}
        self._finite: torch.Tensor | None = None

    @property
    def finite(self) -> bool:
        """Whether all scores were numbers, neither NaN nor infinite; this waits for the device."""
        return self._finite is None or bool(self._finite)

    def update(self, plan: RoutingPlan | WindowPlan) -> None:
        """Count the routed tokens of a batch."""
        logits, key = plan.logits, (plan.size, plan.width)
        if key not in self.counts:
            self.counts[key] = torch.zeros(logits.shape[1], device=logits.device)
            self.images[key] = 0
        self.counts[key] += plan.kept().flatten(1).sum(0)
        self.images[key] += len(logits)
        finite = logits.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite

    def result(self) -> RouteHealth | None:
        """Return the figures, means over grids and numbers of tokens by images, or None if nothing was counted."""
        images = sum(self.images.values())
        if not images:
            return None
        grids: dict[tuple[int, int], list[Key]] = defaultdict(list)
        for key in self.counts:
            grids[key[0]].append(key)
        share = {grid: self._routed(keys) for grid, keys in grids.items()}
        weight = {grid: sum(self.images[key] for key in keys) / images for grid, keys in grids.items()}
        return RouteHealth(
            images,
            sum(weight[grid] * float(share[grid].mean()) for grid in grids),
            sum(weight[grid] * _entropy(share[grid]) for grid in grids),
            self._variance(),
            sum(weight[grid] * float((share[grid] == 0).double().mean()) for grid in grids),
        )

    def _routed(self, keys: list[Key]) -> torch.Tensor:
        """Return the share of images that routed each position."""
        counts = torch.stack([self.counts[key].double() for key in keys])
        return counts.sum(0) / sum(self.images[key] for key in keys)

    def _variance(self) -> float:
        """Return the relative variance, unbiased for few images; 1, as of independent draws, where there is one."""
        total, images = 0.0, 0
        for key, n in self.images.items():
            share = self._routed([key])
            c = float(share.mean())
            if n > 1 and c < 1:
                total += n * float((share * (1 - share)).mean()) / (c * (1 - c)) * n / (n - 1)
                images += n
        return min(1.0, total / images) if images else 1.0


def _entropy(share: torch.Tensor) -> float:
    """Return the entropy of the positions over that of equal shares."""
    places = share / share.sum()
    return float(-torch.xlogy(places, places).sum()) / max(math.log(len(share)), 1e-12)
