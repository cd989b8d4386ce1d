"""A benchmark as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mod_vision.eval.cost.benchmark import Row
from mod_vision.files import write_figure
from mod_vision.text import in_plot


def draw_speed(rows: Sequence[Row], conditions: str, path: Path) -> None:
    """Draw the latency of each row with its quartiles, and what a capacity's FLOPs allow at the dense baseline's pace.

    Args:
        rows: Lines of the benchmark, the dense baseline first.
        conditions: What the latency holds for.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    figure = Figure(figsize=(9, 2.0 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    dense = rows[0]
    medians = [row.latency.median for row in rows]
    spread = [
        [m - row.latency.low for m, row in zip(medians, rows, strict=True)],
        [row.latency.high - m for m, row in zip(medians, rows, strict=True)],
    ]
    axes.barh(range(len(rows)), medians, xerr=spread, color="C0", height=0.6, label="measured, with quartiles")
    own = [i for i, row in enumerate(rows) if row.name.split()[0] == dense.name.split()[0]]
    limits = [dense.latency.median * rows[i].gflops / dense.gflops for i in own]
    axes.scatter(limits, own, marker="|", s=260, color="C1", label="limit: FLOPs at the dense baseline's pace")
    axes.set_yticks(range(len(rows)), [in_plot(row.name) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms per batch\n{textwrap.fill(conditions, 90)}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    write_figure(path, figure)
