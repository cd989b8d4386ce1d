"""The figures of the page: each a chart and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mod_vision.eval.evaluate import Evaluation
from mod_vision.routing.recall import OBJECTS, REST
from mod_vision.viz.report.charts import ChartRow, Point, curves, dot_chart, histograms, swatch
from mod_vision.viz.report.data import Content, Stage, Stop, describe
from mod_vision.viz.report.gallery import depth_of, palette

MAX_GROUPS = 14  # rows of a chart; its table has all
RECALL_COLUMNS = (
    "stage, capacity",
    "objects computed",
    "best possible",
    "background skipped",
    "random: computed",
    "random: skipped",
)


class Table(NamedTuple):
    """A table as text: its columns, and rows of which the first cell is the head."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Figure(NamedTuple):
    """A chart with its caption, legend and table.

    Attributes:
        title: What it shows.
        note: How to read it.
        chart: The SVG.
        legend: Mark and name of each series.
        table: The same numbers.
        stop: Stop of the slider that it belongs to, None if to all.
    """

    title: str
    note: str
    chart: Markup
    legend: Sequence[tuple[Markup, str]]
    table: Table
    stop: int | None = None


def draw_figures(content: Content) -> list[Figure]:
    """Return the figures that the content allows: without scores only the depth of patches."""
    figures = [depth_figure(content)]
    if content.evaluations:
        figures = [cost_figure(content), recall_figure(content), *figures, *class_figures(content)]
    return figures


def sparse(content: Content) -> list[tuple[int, Stop]]:
    """Return number and stop where something is skipped."""
    return [(i, stop) for i, stop in enumerate(content.stops) if not stop.dense]


def depth_figure(content: Content) -> Figure:
    """Show over the patches of the gallery how many blocks they passed."""
    most, shares = content.most, {}
    for i, stop in sparse(content):
        passed = [depth_of(picture.looks[i].maps, content.stages).ravel() for picture in content.pictures]
        counts = np.bincount(np.concatenate(passed), minlength=most + 1)
        shares[describe(stop)] = (counts / counts.sum()).tolist()
    occurring = [i for i in range(most + 1) if any(row[i] for row in shares.values())]
    axis = "windows that compute it" if content.windowed else "blocks passed"
    rows = [[str(i), *(percent(row[i]) for row in shares.values())] for i in occurring]
    title = "Windows of the cells" if content.windowed else "Depth of the patches"
    images = f"the gallery's {len(content.pictures)} images"
    note = f"Routed blocks that a patch passed, of {most}; share of all patches of {images}, on the finest grid."
    if content.windowed:
        note = f"Windows that compute a cell, none where it is skipped; share of all cells of {images}."
    colours, label = palette(most, content.windowed), f"{title}: a histogram for each capacity; table below"
    return Figure(title, note, histograms(shares, colours, axis, label), [], Table([axis, *shares], rows))


def recall_figure(content: Content) -> Figure:
    """Show how much of the objects and of the background each stage computes, beside random routing."""
    chart, rows = [], []
    for stage in content.stages:
        for i, stop in sparse(content):
            recall, name = content.evaluations[i].recall.result(), f"{stage.title}, {stop.label}"
            if stage.name not in recall.random:
                continue
            shares, chance = recall.routed[stage.name], recall.random[stage.name]
            objects, rest, best = shares.get(OBJECTS), shares.get(REST), recall.best[stage.name].get(OBJECTS)
            chart.append(ChartRow(name, [objects, rest], chance))
            rows.append([name, *map(percent, (objects, best, skipped(rest), chance, skipped(chance)))])
    title = "Object recall of the router"
    return Figure(
        title,
        "Share of tokens that a stage computed, in all images of the split: those of labelled objects, and the rest. A "
        "router that looks at the objects pulls the two apart; random routing computes as much of both.",
        dot_chart(chart, "tokens computed", f"{title}: shares per stage and capacity; table below"),
        [(swatch(0), "objects"), (swatch(1), "background"), (swatch(-1), "random routing")],
        Table(RECALL_COLUMNS, rows),
    )


def class_figures(content: Content) -> list[Figure]:
    """Show for each stop what share of each class, and of each kind of stuff, the stages skip."""
    figures = []
    for i, stop in sparse(content):
        evaluation = content.evaluations[i]
        groups = _groups(evaluation)
        values = {group: _skipped_by_stage(evaluation, content.stages, group) for group in groups}
        order = sorted(groups, key=lambda group: -_mean(values[group]))
        largest = sorted(order, key=lambda group: -groups[group])[:MAX_GROUPS]
        chance = skipped(mean(evaluation.recall.result().random.values())) if groups else None
        shown = [ChartRow(_title(group), values[group], chance) for group in order if group in largest]
        names = set(evaluation.names.values())
        rows = [
            [_title(group), _kind(group, names), str(groups[group]), *(percent(value) for value in values[group])]
            for group in order
        ]
        title = f"What is skipped at {describe(stop)}"
        left_out = f" The {MAX_GROUPS} groups with most tokens of {len(groups)}; the table has all."
        figures.append(
            Figure(
                title,
                "Skipped share of the tokens of each class and, where the data set has dense labels, of each kind of "
                "background." + (left_out if len(groups) > MAX_GROUPS else ""),
                dot_chart(shown, "tokens skipped", f"{title}: shares per class and stage; table below"),
                [
                    *((swatch(number), stage.title) for number, stage in enumerate(content.stages)),
                    (swatch(-1), "random routing, mean of the stages"),
                ],
                Table(["tokens of", "kind", "number", *(stage.title for stage in content.stages)], rows),
                i,
            )
        )
    return figures


def cost_figure(content: Content) -> Figure:
    """Show accuracy against executed GFLOPs: a line through the capacities, and a point for thresholds."""
    series: dict[str, list[Point]] = {}
    rows = []
    scored = zip(content.stops, content.evaluations, strict=True)
    for stop, evaluation in sorted(scored, key=lambda pair: pair[0].capacity is None):
        cost, aps, own = evaluation.cost, _ap(evaluation), stop.capacity is None
        for kind, ap in aps.items():
            name = f"{kind}, thresholds" if own else kind
            series.setdefault(name, []).append(Point(cost.gflops, max(0.0, ap), stop.label, above=own))
        cells = ["-" if ap < 0 else f"{ap:.1f}" for ap in aps.values()]
        rows.append([describe(stop), f"{cost.gflops:.2f}", *cells, str(cost.latency)])
    first, thresholds = content.evaluations[0], any(stop.capacity is None for stop in content.stops)
    latency = f"latency ({first.cost.device}, threads: {first.cost.threads})"
    title = "Accuracy against cost"
    return Figure(
        title,
        f"COCO AP over the {len(first.files)} images of the split, in percent, and the GFLOPs that one image executes. "
        "Each point is a capacity of the same checkpoint."
        + (
            " Thresholds: the mean of all images at their input sizes; capacities: a square input."
            if thresholds
            else ""
        ),
        curves([sorted(points) for points in series.values()], ("executed GFLOPs", "AP"), f"{title}; table below"),
        [(swatch(i), name) for i, name in enumerate(series)],
        Table(["", "GFLOPs", *_ap(first), latency], rows),
    )


def percent(share: float | None) -> str:
    """Return a share as a cell of a table."""
    return "-" if share is None else f"{100 * share:.1f} %"


def skipped(routed: float | None) -> float | None:
    """Return the skipped share for a routed one."""
    return None if routed is None else 1 - routed


def _ap(evaluation: Evaluation) -> dict[str, float]:
    """Return AP in percent by its name, negative where the split has no label to score."""
    masks = {"mask AP": 100 * evaluation.mask["AP"]} if evaluation.mask else {}
    return {"box AP": 100 * evaluation.box["AP"], **masks}


def _groups(evaluation: Evaluation) -> dict[str, int]:
    """Return the number of tokens of each group in all stages."""
    totals: dict[str, int] = {}
    for layer in evaluation.recall.total.values():
        for group, count in layer.items():
            totals[group] = totals.get(group, 0) + count
    return {group: count for group, count in totals.items() if count}


def _skipped_by_stage(evaluation: Evaluation, stages: Sequence[Stage], group: str) -> list[float | None]:
    """Return the share of a group's tokens that each stage skipped."""
    shares = evaluation.recall.result().routed
    return [skipped(shares.get(stage.name, {}).get(group)) for stage in stages]


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of those that are there."""
    return mean(value for value in values if value is not None)


def _title(group: str) -> str:
    """Return what the page calls a group."""
    return {OBJECTS: "all objects", REST: "all background"}.get(group, group)


def _kind(group: str, classes: set[str]) -> str:
    """Return whether a group is a class of objects, a kind of stuff, or a sum."""
    if group in (OBJECTS, REST):
        return "sum"
    return "class" if group.removeprefix("class ") in classes else "stuff"
