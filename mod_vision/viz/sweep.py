"""A capacity sweep as a picture."""

from __future__ import annotations

from pathlib import Path

from mod_vision.eval.sweep import Sweep, cost_of, on_front
from mod_vision.text import in_plot
from mod_vision.viz.pareto import Mark, Panel, draw_pareto


def draw_sweep(sweep: Sweep, name: str, path: Path) -> None:
    """Draw AP of boxes, and of masks, against executed GFLOPs and against latency.

    Args:
        sweep: Evaluations by capacity.
        name: Of the model.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    first = next(iter(sweep.values()))
    conditions = f"batch 1, {first.cost.device}, {first.cost.threads} threads"
    panels = []
    for kind in first.scores:
        for cost, label in (("gflops", "executed GFLOPs"), ("latency", f"latency in ms ({conditions})")):
            front = on_front(sweep, kind, cost)
            marks = [
                Mark(cost_of(found, cost), found.scores[kind].stats["AP"], f"{capacity:g}", in_plot(name), on)
                for (capacity, found), on in zip(sweep.items(), front, strict=True)
                if found.scores[kind].stats["AP"] >= 0  # -1 without objects
            ]
            panels.append(Panel(label, f"{kind} AP in percent", marks))
    draw_pareto(panels, path)
