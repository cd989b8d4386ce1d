"""Charts as SVG. Colours are classes of page.css, so that they follow the reader's light or dark scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from mod_vision.text import printable

WIDTH = 420  # units; the page shows one as about a pixel, on a phone a little less
LABELS = 132  # width of the row labels
LETTERS = 19  # that fit into it
ROW = 24
TOP, BOTTOM, RIGHT = 8, 40, 22
CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
    "diamond": [(0, -6), (6, 0), (0, 6), (-6, 0)],
    "triangle": [(0, -5.5), (5.5, 4.5), (-5.5, 4.5)],
}
SHAPES = ("circle", *CORNERS)
COLOURS = 6  # of page.css
BAR_HEIGHT = 72
BAR_LABELS = 112  # width of the row labels of a histogram


class ChartRow(NamedTuple):
    """A row of a dot chart: its label, the share in [0, 1] of each series, None where it has none, and chance's."""

    label: str
    values: Sequence[float | None]
    chance: float | None = None


def dot_chart(rows: Sequence[ChartRow], axis: str, label: str) -> Markup:
    """Draw rows of marks on an axis of 0 to 100 %, joined by a line; a tick marks chance.

    Args:
        rows: From top to bottom; all have as many values, one per series.
        axis: What the axis shows.
        label: What the chart shows, for those who do not see it.
    """
    height = TOP + ROW * len(rows)
    svg = _svg(height + BOTTOM, label)
    span = WIDTH - RIGHT - LABELS
    for percent in (0, 25, 50, 75, 100):
        x = LABELS + span * percent / 100
        _line(svg, (x, TOP), (x, height), "grid")
        _text(svg, (x, height + 16), f"{percent} %" if percent in (0, 100) else f"{percent}", "tick middle")
    _text(svg, (LABELS + span / 2, height + 33), axis, "axis middle")
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        name = row.label if len(row.label) <= LETTERS else f"{row.label[: LETTERS - 1]}…"
        _text(svg, (LABELS - 8, y + 4), name, "row end")
        found = [(i, LABELS + span * value) for i, value in enumerate(row.values) if value is not None]
        if len(found) > 1:
            _line(svg, (min(x for _, x in found), y), (max(x for _, x in found), y), "join")
        if row.chance is not None:
            x = LABELS + span * row.chance
            _line(svg, (x, y - 8), (x, y + 8), "chance")
        for i, x in found:
            _mark(svg, (x, y), i)
    return _markup(svg)


def histograms(shares: Mapping[str, Sequence[float]], palette: Sequence[str], axis: str, label: str) -> Markup:
    """Draw a histogram per row, one below the other, over 0, 1, 2, ...

    Args:
        shares: Share in [0, 1] of each number, by row.
        palette: Colour of each number.
        axis: What the numbers are.
        label: What the chart shows, for those who do not see it.
    """
    band = BAR_HEIGHT + 30
    height = TOP + band * len(shares)
    svg = _svg(height + BOTTOM - 8, label)
    left, right = BAR_LABELS, WIDTH - RIGHT
    step = (right - left) / len(palette)
    most = max(max(row) for row in shares.values())
    for number, (name, row) in enumerate(shares.items()):
        floor = TOP + band * (number + 1) - 8
        _text(svg, (left - 8, floor - 4), name, "row end")
        _line(svg, (left, floor), (right, floor), "base")
        for i, share in enumerate(row):
            if share:
                tall, x = max(1.0, BAR_HEIGHT * share / most), left + step * i
                place = _numbers(x=x + 0.1 * step, y=floor - tall, width=0.8 * step, height=tall)
                ElementTree.SubElement(svg, "rect", {"class": "bar", "style": f"fill:{palette[i]}"} | place)
                _text(svg, (x + step / 2, floor - tall - 4), f"{100 * share:.0f} %", "tick middle")
    every = max(1, round(len(palette) / 12))
    for i in range(0, len(palette), every):
        _text(svg, (left + step * (i + 0.5), height + 8), str(i), "tick middle")
    _text(svg, ((left + right) / 2, height + 26), axis, "axis middle")
    return _markup(svg)


class Point(NamedTuple):
    """A point of a curve: x, y and what is written below it, or above."""

    x: float
    y: float
    text: str
    above: bool = False


def curves(series: Sequence[Sequence[Point]], axes: tuple[str, str], label: str) -> Markup:
    """Draw one line per series through its points, both axes from 0.

    Args:
        series: Points of each series; one of them has a point at least.
        axes: What x and y show.
        label: What the chart shows, for those who do not see it.
    """
    left, height = 44, 250
    svg = _svg(height + BOTTOM, label)
    points = [point for line in series for point in line]
    xs = _ticks(max(point.x for point in points))
    ys = _ticks(max(point.y for point in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (WIDTH - RIGHT - left) * x / xs[-1], height - (height - 30) * y / ys[-1]

    for y in ys:
        _line(svg, place(0, y), place(xs[-1], y), "grid")
        _text(svg, (left - 8, place(0, y)[1] + 4), f"{y:g}", "tick end")
    for x in xs:
        _text(svg, (place(x, 0)[0], height + 16), f"{x:g}", "tick middle")
    _text(svg, place(xs[-1] / 2, 0), axes[0], "axis middle", 33)
    _text(svg, (0, 14), axes[1], "axis")
    for i, line in enumerate(series):
        places = [place(point.x, point.y) for point in line]
        if len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            ElementTree.SubElement(svg, "polyline", {"class": f"curve s{i % COLOURS}", "points": path})
        for at, point in zip(places, line, strict=True):
            _mark(svg, at, i)
            above = point.above or at[1] > height - 20  # not over the axis
            _text(svg, at, point.text, "tick middle", -10 if above else 18)
    return _markup(svg)


def swatch(series: int) -> Markup:
    """Return the mark of a series for a legend; -1 is the tick of chance."""
    svg = ElementTree.Element("svg", {"class": "swatch", "viewBox": "0 0 16 16", "aria-hidden": "true"})
    if series < 0:
        _line(svg, (8, 1), (8, 15), "chance")
    else:
        _mark(svg, (8, 8), series)
    return _markup(svg)


def _ticks(most: float) -> list[float]:
    """Return round numbers from 0 to at least `most`."""
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 1.02 * most or 1)]


def _svg(height: float, label: str) -> ElementTree.Element:
    """Return an empty chart."""
    view = f"0 0 {WIDTH} {height:g}"
    return ElementTree.Element("svg", {"class": "chart", "role": "img", "viewBox": view, "aria-label": label})


def _mark(svg: ElementTree.Element, at: tuple[float, float], series: int) -> None:
    """Draw the mark of a series, told apart by shape too."""
    shape, (x, y) = SHAPES[series % len(SHAPES)], at
    look = {"class": f"mark s{series % COLOURS}"}
    if shape == "circle":
        ElementTree.SubElement(svg, "circle", look | _numbers(cx=x, cy=y, r=5))
        return
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in CORNERS[shape])
    ElementTree.SubElement(svg, "polygon", look | {"points": path})


def _line(svg: ElementTree.Element, start: tuple[float, float], stop: tuple[float, float], look: str) -> None:
    """Draw a line."""
    numbers = _numbers(x1=start[0], y1=start[1], x2=stop[0], y2=stop[1])
    ElementTree.SubElement(svg, "line", {"class": look} | numbers)


def _text(svg: ElementTree.Element, at: tuple[float, float], text: str, look: str, below: float = 0) -> None:
    """Write a text, whose left end of the base line lies at a point, or a distance below it."""
    ElementTree.SubElement(svg, "text", {"class": look} | _numbers(x=at[0], y=at[1] + below)).text = printable(text)


def _numbers(**values: float) -> dict[str, str]:
    """Return attributes with one decimal."""
    return {name: f"{value:.1f}".removesuffix(".0") for name, value in values.items()}


def _markup(svg: ElementTree.Element) -> Markup:
    """Return an element as text; ElementTree has escaped what is in it."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
