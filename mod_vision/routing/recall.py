"""Object recall of the router: does the router send the objects through the heavy blocks, and the sky past them?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from mod_vision.measure import Measure
from mod_vision.routing.other_images import OtherImages
from mod_vision.text import printable

OBJECTS, REST = "objects", "rest"


class RecallShares(NamedTuple):
    """Shares of tokens in [0, 1].

    Attributes:
        routed: Routed share per layer and group; groups without tokens are left out.
        random: Per layer, the share that random routing of as many tokens gives every group.
        other_image: What the routes of other images of the same shape would have routed, per layer and group: it shows
            what a router owes to knowing where objects lie in any image. Layers and groups are left out where no image
            has another of its shape.
        best: The largest share that any router could route with as many tokens in each image, per layer and group;
            below 1 if an image has more tokens of the group than are routed.
    """

    routed: dict[str, dict[str, float]]
    random: dict[str, float]
    other_image: dict[str, dict[str, float]]
    best: dict[str, dict[str, float]]

    def figures(self) -> dict[str, Any]:
        """Return them for JSON."""
        return {
            "routed_share": self.routed,
            "routed_share_random": self.random,
            "routed_share_other_image": self.other_image,
            "routed_share_best": self.best,
        }


class RouterRecall(Measure):
    """Counts, per routed layer and group of tokens, how many were routed.

    The groups can be anything that labels tell apart: objects and the rest, single classes, sky and road.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.routed: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.total: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.fitting: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.others: dict[str, OtherImages] = defaultdict(OtherImages)

    def update(self, layer: str, kept: torch.Tensor, groups: Mapping[str, torch.Tensor]) -> None:
        """Count one batch.

        Args:
            layer: Name of the routed layer.
            kept: (B, H, W) bool, True where the token was routed.
            groups: (B, H, W) bool per group, among them objects and the rest: the image without its padding.
        """
        places = kept.flatten(1).sum(1)
        for group, members in groups.items():
            self.routed[layer][group] += int((kept & members).sum())
            self.total[layer][group] += int(members.sum())
            self.fitting[layer][group] += int(members.flatten(1).sum(1).minimum(places).sum())
        self.others[layer].update(kept, groups[OBJECTS] | groups[REST], groups)

    def result(self) -> RecallShares:
        """Return the shares."""
        elsewhere = {layer: shares for layer, others in self.others.items() if (shares := others.result())}
        return RecallShares(self._over_total(self.routed), self._random(), elsewhere, self._over_total(self.fitting))

    def _over_total(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
        """Return counts as shares of the tokens of each group."""
        return {
            layer: {group: counts[layer][group] / n for group, n in totals.items() if n}
            for layer, totals in self.total.items()
        }

    def _random(self) -> dict[str, float]:
        """Return per layer the share that random routing of as many tokens gives every group."""
        return {
            layer: (self.routed[layer][OBJECTS] + self.routed[layer][REST]) / (totals[OBJECTS] + totals[REST])
            for layer, totals in self.total.items()
            if totals[OBJECTS] + totals[REST]
        }

    def table(self, only: Collection[str] | None = None) -> str:
        """Return the figures as a table, in percent.

        `random` is what random routing of as many tokens would route of each group, `other image` what the routes of
        other images of the same shape would, `best` what any router could.

        Args:
            only: Groups to show, by default all.
        """
        head = f"{'layer':<12}{'tokens':<14}{'routed':>9}{'skipped':>9}{'random routed':>15}"
        lines = [f"{head}{'other image':>13}{'best routed':>13}"]
        routed, random, other, best = self.result()
        for layer, shares in routed.items():
            for group in (group for group in shares if only is None or group in only):
                share, elsewhere = shares[group], other.get(layer, {}).get(group)
                figures = f"{100 * share:>8.1f}%{100 * (1 - share):>8.1f}%{100 * random[layer]:>14.1f}%"
                figures += f"{'-':>13}" if elsewhere is None else f"{100 * elsewhere:>12.1f}%"
                lines.append(f"{layer:<12}{printable(group, 40):<14}{figures}{100 * best[layer][group]:>12.1f}%")
        repeated, images = max((others.images() for others in self.others.values()), default=(0, 0))
        lines.append(f"other image: the routes of others of the same shape, which {repeated} of {images} images have")
        return "\n".join(lines)


def majority_cells(labels: torch.Tensor, size: tuple[int, int], value: int) -> torch.Tensor:
    """Return the cells (H, W) of which more than half the pixels of a dense annotation (h, w) are `value`."""
    share = torch.nn.functional.adaptive_avg_pool2d((labels == value).float()[None, None], size)
    return share[0, 0] > 0.5
