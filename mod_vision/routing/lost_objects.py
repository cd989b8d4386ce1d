"""Objects that windows lose: of an object that no window shows, the network cannot say anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mod_vision.measure import Measure
from mod_vision.routing.placing import plan_windows
from mod_vision.routing.windows import WindowPlan
from mod_vision.text import printable

SHOWN = 0.5  # an object is lost if no window shows this share of its box
SMALL, MEDIUM = 32**2, 96**2  # px, COCO's limits
ROUTER = "router"
ALL = "all"


class Objects(NamedTuple):
    """Objects of a batch, those that are the windows' to find.

    Attributes:
        boxes: (M, 4) corners in px of the input.
        areas: (M,) in px of the original image.
        images: (M,) which image of the batch each is in.
        classes: (M,) names.
    """

    boxes: torch.Tensor
    areas: torch.Tensor
    images: torch.Tensor
    classes: Sequence[str]


def shown_share(plan: WindowPlan, objects: Objects) -> torch.Tensor:
    """Return the share of each box that the window shows which shows most of it, (M,); 0 without windows."""
    whole = objects.areas.new_zeros(len(objects.areas))
    if plan.whole is not None:
        whole = plan.whole[objects.images].to(whole)
    if not plan.width:
        return whole
    low = (plan.corners * plan.cell).flip(-1)  # x, y
    side = low.new_tensor((plan.window[1], plan.window[0])) * plan.cell
    low, boxes = low[objects.images], objects.boxes[:, None]
    common = torch.minimum(boxes[..., 2:], low + side) - torch.maximum(boxes[..., :2], low)
    share = common.clamp(min=0).prod(-1) / (boxes[..., 2:] - boxes[..., :2]).prod(-1).clamp(min=1e-6)
    return (share if plan.real is None else share * plan.real[objects.images]).amax(1).maximum(whole)


def elsewhere(plan: WindowPlan, logits: torch.Tensor) -> WindowPlan:
    """Return as many windows for each image, placed by other scores (B, N)."""
    other = plan_windows(logits, plan.size, plan.window, plan.width, plan.cell, inside=plan.inside)
    return other._replace(real=plan.real, whole=plan.whole)


class LostObjects(Measure):
    """Counts, by size and class, which objects the windows lose, and what other routers lose with as many windows.

    Attributes:
        windows: Number of windows of each image.
        shares: Share of each image's pixels that its windows compute.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.windows: list[int] = []
        self.shares: list[float] = []
        self.lost: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.total: dict[str, int] = defaultdict(int)

    def update(self, plan: WindowPlan, objects: Objects, others: Mapping[str, torch.Tensor]) -> None:
        """Count one batch.

        Args:
            plan: Its windows.
            objects: Its objects.
            others: Scores of the cells (B, N) by other routers, by their names.
        """
        counts = plan.counts().tolist()
        self.windows += counts
        self.shares += plan.shares().tolist()
        sizes = ["small" if a < SMALL else "medium" if a < MEDIUM else "large" for a in objects.areas.tolist()]
        groups = [(ALL, size, f"class {name}") for size, name in zip(sizes, objects.classes, strict=True)]
        for group in (group for own in groups for group in own):
            self.total[group] += 1
        plans = {ROUTER: plan, **{name: elsewhere(plan, logits) for name, logits in others.items()}}
        for router, placed in plans.items():
            for lost, own in zip((shown_share(placed, objects) < SHOWN).tolist(), groups, strict=True):
                for group in own:
                    self.lost[router][group] += lost

    def result(self) -> dict[str, Any]:
        """Return windows and shares of images, and the share of objects lost by router and group, for JSON."""
        shares = {name: {group: n[group] / self.total[group] for group in self.total} for name, n in self.lost.items()}
        return {
            "windows_median": _quantile(self.windows, 0.5),
            "windows_p95": _quantile(self.windows, 0.95),
            "computed_share": sum(self.shares) / max(len(self.shares), 1),
            "objects": dict(self.total),
            "lost": shares,
        }

    def table(self) -> str:
        """Return the figures as a table, in percent."""
        found = self.result()
        lines = [
            f"windows per image  median {found['windows_median']:g}, p95 {found['windows_p95']:g}; computed "
            f"{100 * found['computed_share']:.1f} % of the pixels",
            f"{'objects lost':<24}{'objects':>9}" + "".join(f"{name:>10}" for name in found["lost"]),
        ]
        for group, n in found["objects"].items():
            shares = "".join(f"{100 * lost[group]:>9.1f}%" for lost in found["lost"].values())
            lines.append(f"  {printable(group, 20):<22}{n:>9}{shares}")
        return "\n".join(lines)


def _quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile, 0 of no values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q)) if values else 0.0
