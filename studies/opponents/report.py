"""The table and the picture of a comparison, from its JSON files alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from mod_vision.eval.accuracy.bootstrap import difference
from mod_vision.eval.pareto import pareto_front
from mod_vision.files import write_figure

COLUMNS = ("", "AP", "to dense", "AP50", "APs", "sparse", "crowded", "lost", "small", "windows", "share", "ms", "p95")
GROUPS = {"routed": "routed windows", "dense": "dense", "SAHI": "SAHI", "ESOD": "ESOD's rule"}


def file_name(way: str) -> str:
    """Return the name of the JSON of a way."""
    return re.sub(r"[^a-z0-9.]+", "-", way.lower()) + ".json"


def report(folder: Path, names: Sequence[str]) -> str:
    """Draw pareto.png and return the table as Markdown.

    Args:
        folder: Where the JSON files lie.
        names: The ways in their order, the dense one first.
    """
    ways = [json.loads((folder / file_name(name)).read_text()) for name in names]
    timed = json.loads((folder / "times.json").read_text())
    times = timed["ms"]
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cells(way, ways[0], times.get(way['name'])))} |" for way in ways]
    _draw(folder / "pareto.png", ways, times)
    return "\n".join([*lines, "", *_break_even(ways, timed["images"], times)]) + "\n"


def _cells(way: dict[str, Any], dense: dict[str, Any], ms: Sequence[float] | None) -> list[str]:
    """Return the cells of a way's line."""
    gap = difference(way["AP"] - dense["AP"], np.array(way["resamples"]), np.array(dense["resamples"]))
    cells = [way["name"], _percent(way["AP"]), "" if way is dense else str(gap)]
    cells += [_percent(way[key]) for key in ("AP50", "APs", "sparse", "crowded")]
    windows = way.get("windows")
    if windows:
        lost = windows["lost"]["router"]
        cells += [f"{_percent(lost['all'])} %", f"{_percent(lost['small'])} %" if "small" in lost else ""]
        cells += [f"{windows['windows_median']:g}, {windows['windows_p95']:g}", f"{windows['computed_share']:.2f}"]
    else:
        cells += [""] * 4
    return cells + ([f"{np.median(ms):.1f}", f"{np.percentile(ms, 95):.0f}"] if ms else ["", ""])


def _percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f}"


def _break_even(ways: Sequence[dict[str, Any]], images: Sequence[int], times: dict[str, Any]) -> list[str]:
    """Return lines that say from which number of windows on the dense model is as fast, and how often that is."""
    lines = []
    for way in ways:
        if not way["name"].startswith("routed") or way["name"] not in times:
            continue
        counts, whole = (np.array(way[key])[images] for key in ("per_image", "whole"))
        ms, dense = np.array(times[way["name"]]), float(np.median(times[f"dense{_runtime(way['name'], times)}"]))
        counts, ms = counts[~whole], ms[~whole]
        if len(np.unique(counts)) < 3:
            continue
        each, base = np.polyfit(counts, ms, 1)
        lines.append(
            f"{way['name']}: {base:.1f} ms and {each:.2f} for each window; as slow as the dense model with "
            f"{(dense - base) / each:.1f} windows, which {100 * float(np.mean(counts > (dense - base) / each)):.0f} % "
            "of the images have."
        )
    return lines


def _runtime(way: str, times: dict[str, Any]) -> str:
    """Return the runtime that the name of a way ends with, `, OpenVINO`, if a dense model was run by it too."""
    comma, runtime = way.partition(", ")[1:]
    return f"{comma}{runtime}" if f"dense{comma}{runtime}" in times else ""


def _draw(path: Path, ways: Sequence[dict[str, Any]], times: dict[str, Any]) -> None:
    """Draw AP against milliseconds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    timed = [way for way in ways if way["name"] in times]
    points = [(float(np.median(times[way["name"]])), 100 * way["AP"]) for way in timed]
    groups: dict[str, list[int]] = {}
    for i, way in enumerate(timed):
        group = next((text for start, text in GROUPS.items() if way["name"].startswith(start)), way["name"])
        group += _runtime(way["name"], times)
        groups.setdefault(group, []).append(i)
    for (group, places), marker in zip(groups.items(), "osD^vP<X>*", strict=False):
        own = sorted(points[i] for i in places)
        line = "-" if len(own) > 1 else ""
        axes.plot(*zip(*own, strict=True), marker=marker, linestyle=line, label=group)
    front = pareto_front(points)
    axes.plot(*zip(*(points[i] for i in front), strict=True), color="gray", linewidth=6, alpha=0.2, zorder=0)
    axes.set(xlabel="milliseconds of an image, median", ylabel="AP", xscale="log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)
