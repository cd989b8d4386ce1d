"""Routing truth: does the router send the objects through the heavy blocks, and the sky past them?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from mod_vision.text import printable

OBJECTS, REST = "objects", "rest"


class RoutingTruth:
    """Counts, per routed layer and group of tokens, how many were routed.

    The groups can be anything that labels tell apart: objects and the rest, single classes, sky and road.
    """

    def __init__(self) -> None:
        self.routed: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.total: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.fitting: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def update(self, layer: str, kept: torch.Tensor, groups: Mapping[str, torch.Tensor]) -> None:
        """Count one batch.

        Args:
            layer: Name of the routed layer.
            kept: (B, H, W) bool, True where the token was routed.
            groups: (B, H, W) bool per group.
        """
        places = kept.flatten(1).sum(1)
        for group, members in groups.items():
            self.routed[layer][group] += int((kept & members).sum())
            self.total[layer][group] += int(members.sum())
            self.fitting[layer][group] += int(members.flatten(1).sum(1).minimum(places).sum())

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the routed share in [0, 1] per layer and group; groups without tokens are left out."""
        return self._over_total(self.routed)

    def best(self) -> dict[str, dict[str, float]]:
        """Return the largest share of each group that any router could route with as many tokens in each image.

        Below 1 if an image has more tokens of the group than are routed.
        """
        return self._over_total(self.fitting)

    def _over_total(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
        """Return counts as shares of the tokens of each group."""
        return {
            layer: {group: counts[layer][group] / n for group, n in totals.items() if n}
            for layer, totals in self.total.items()
        }

    def random(self) -> dict[str, float]:
        """Return per layer the share that random routing of as many tokens gives every group, in [0, 1]."""
        return {
            layer: (self.routed[layer][OBJECTS] + self.routed[layer][REST]) / (totals[OBJECTS] + totals[REST])
            for layer, totals in self.total.items()
            if totals[OBJECTS] + totals[REST]
        }

    def table(self) -> str:
        """Return the figures as a table, in percent.

        `random` is what random routing of as many tokens would route of each group, `best` what any router could.
        """
        lines = [f"{'layer':<12}{'tokens':<14}{'routed':>9}{'skipped':>9}{'random routed':>15}{'best routed':>13}"]
        random, best = self.random(), self.best()
        for layer, shares in self.shares().items():
            for group, share in shares.items():
                figures = f"{100 * share:>8.1f}%{100 * (1 - share):>8.1f}%{100 * random[layer]:>14.1f}%"
                lines.append(f"{layer:<12}{printable(group, 40):<14}{figures}{100 * best[layer][group]:>12.1f}%")
        return "\n".join(lines)


def majority_cells(labels: torch.Tensor, size: tuple[int, int], value: int) -> torch.Tensor:
    """Return the cells (H, W) of which more than half the pixels of a dense annotation (h, w) are `value`."""
    share = torch.nn.functional.adaptive_avg_pool2d((labels == value).float()[None, None], size)
    return share[0, 0] > 0.5
