"""The Pareto front of a sweep as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from mod_vision.files import write_figure

SHAPES = "osD^vP<X>*"
COLOURS = 10  # of matplotlib's cycle


class Mark(NamedTuple):
    """A point of the picture.

    Attributes:
        latency: Milliseconds.
        ap: In [0, 1].
        text: What is written beside it.
        group: Points of a group share colour, shape and a line of the legend.
        front: Whether it is on the Pareto front.
    """

    latency: float
    ap: float
    text: str
    group: str
    front: bool


def draw_pareto(marks: Sequence[Mark], metric: str, conditions: str, path: Path) -> None:
    """Draw AP against latency: the front filled and joined by a staircase, the rest hollow.

    Args:
        marks: All trials.
        metric: Name of the AP.
        conditions: What the latency holds for.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    front = sorted(mark for mark in marks if mark.front)
    steps = [mark.latency for mark in front], [100 * mark.ap for mark in front]
    axes.step(*steps, where="post", color="0.6", linewidth=1.2, zorder=1, label="Pareto front (filled)")
    for i, group in enumerate(dict.fromkeys(mark.group for mark in marks)):
        colour, shape = f"C{i % COLOURS}", SHAPES[i % len(SHAPES)]
        axes.scatter([], [], s=50, color=colour, marker=shape, label=group)
        for mark in (mark for mark in marks if mark.group == group):
            at = (mark.latency, 100 * mark.ap)
            axes.scatter(
                *at, s=50, marker=shape, edgecolors=colour, facecolors=colour if mark.front else "white", zorder=2
            )
            away = -1 if mark.front else 1  # above the front there is no point that a text could cover
            axes.annotate(
                mark.text, at, (6 * away, -6 * away), textcoords="offset points", ha="right" if mark.front else "left",
                va="bottom" if mark.front else "top", fontsize=9, color=colour,
            )  # fmt: skip
    axes.margins(0.12)  # for the texts
    axes.set(xlabel=f"latency in ms ({conditions})", ylabel=f"{metric} in percent")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, title="numbers: capacity")
    write_figure(path, figure)
