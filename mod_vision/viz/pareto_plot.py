"""Pareto fronts of AP against cost as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mod_vision.eval.sweep import Sweep, cost_of, on_front
from mod_vision.files import write_figure
from mod_vision.text import in_plot
from mod_vision.yolo.model.variants import Candidate

SHAPES = "osD^vP<X>*"
COLOURS = 10  # of matplotlib's cycle


class Mark(NamedTuple):
    """A point of the picture.

    Attributes:
        cost: What it costs, such as milliseconds.
        ap: In [0, 1].
        text: What is written beside it.
        group: Points of a group share colour, shape and a line of the legend.
        front: Whether it is on the Pareto front.
    """

    cost: float
    ap: float
    text: str
    group: str
    front: bool


class Panel(NamedTuple):
    """One pair of axes: what they show, and the points."""

    xlabel: str
    ylabel: str
    marks: Sequence[Mark]


def draw_pareto(panels: Sequence[Panel], path: Path) -> None:
    """Draw AP against cost: the front filled and joined by a staircase, the rest hollow.

    Args:
        panels: What to draw, two beside each other; they have the same groups.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 5) if len(panels) == 1 else (12, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _draw(axes, panel)
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper", frameon=False, title="numbers: capacity")
    write_figure(path, figure)


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


def draw_tuned(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draw the trials of a sweep over variants: AP against latency relative to the dense baseline.

    Args:
        rows: Trials, as `mod_vision.tune.trials.TuneSweep.rows` gives them.
        metric: Name of the AP.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    marks = []
    for row in rows:
        kind = Candidate(row["capacity"], row["router"], row["stages"]).kind
        marks.append(Mark(1 / row["speed_up"], row["ap"], f"{row['capacity']:g}", kind, row["pareto"]))
    draw_pareto([Panel("latency relative to the dense baseline", f"{metric} in percent", marks)], path)


def _draw(axes: Axes, panel: Panel) -> None:
    """Draw one panel."""
    front = sorted(mark for mark in panel.marks if mark.front)
    steps = [mark.cost for mark in front], [100 * mark.ap for mark in front]
    axes.step(*steps, where="post", color="0.6", linewidth=1.2, zorder=1, label="Pareto front (filled)")
    for i, group in enumerate(dict.fromkeys(mark.group for mark in panel.marks)):
        colour, shape = f"C{i % COLOURS}", SHAPES[i % len(SHAPES)]
        axes.scatter([], [], s=50, color=colour, marker=shape, label=group)
        for mark in (mark for mark in panel.marks if mark.group == group):
            at = (mark.cost, 100 * mark.ap)
            axes.scatter(
                *at, s=50, marker=shape, edgecolors=colour, facecolors=colour if mark.front else "white", zorder=2
            )
            away = -1 if mark.front else 1  # above the front there is no point that a text could cover
            axes.annotate(
                mark.text, at, (6 * away, -6 * away), textcoords="offset points", ha="right" if mark.front else "left",
                va="bottom" if mark.front else "top", fontsize=9, color=colour,
            )  # fmt: skip
    axes.margins(0.12)  # for the texts
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
