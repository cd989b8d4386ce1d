"""Table and plot of a study, made from its JSON files alone."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from mod_vision.files import write_figure, write_text
from mod_vision.routing.recall import OBJECTS

SKIPPED_STUFF = ("sky", "road")
COLOURS, MARKERS = 10, "osD^"  # of matplotlib's cycle; a second round has other marks


@dataclass
class Line:
    """One row of a study at one capacity, over its seeds.

    Attributes:
        name: Row, with the capacity where its checkpoint is scored at several.
        gflops: Executed GFLOPs.
        box: Box AP by seed, in percent.
        mask: Mask AP by seed, in percent; empty for detection.
        recall: Routed share of objects and of stuff of each seed, in percent, by layer and group.
    """

    name: str
    gflops: float = 0.0
    box: dict[str, float] = field(default_factory=dict)
    mask: dict[str, float] = field(default_factory=dict)
    recall: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, seed: str, score: dict[str, Any]) -> None:
        """Add the figures of a seed."""
        self.gflops = score["gflops"]
        self.box[seed] = 100 * score["box"]["AP"]
        if score["mask"]:
            self.mask[seed] = 100 * score["mask"]["AP"]
        for layer, shares in score["routed_share"].items():
            for group, share in shares.items():
                self.recall[layer][group].append(100 * share)


def read_lines(folder: Path) -> list[Line]:
    """Return the lines of a study, in descending GFLOPs.

    Raises:
        FileNotFoundError: If there is no result.
    """
    lines: dict[str, Line] = {}
    for file in sorted(folder.glob("*-seed*.json")):
        row, _, seed = file.stem.rpartition("-seed")
        for score in json.loads(file.read_text())["scores"]:
            name = row if score["capacity"] is None else f"{row} at {score['capacity']}"
            lines.setdefault(name, Line(name)).add(seed, score)
    if not lines:
        raise FileNotFoundError(f"{folder} has no results of a study.")
    return sorted(lines.values(), key=lambda line: (-line.gflops, line.name))


def table(lines: list[Line]) -> str:
    """Return the study as Markdown: mean and deviation over seeds, and what each layer routed and skipped.

    The columns "to dense" have the differences to the dense baseline of the same seed, tuned or not as the row is.
    """
    by_name = {line.name: line for line in lines}
    kinds = ["box", "mask"] if any(line.mask for line in lines) else ["box"]
    head = ["row", "GFLOPs", *(title for kind in kinds for title in (f"{kind} AP", "to dense")), "seeds"]
    head += ["objects routed", "sky, road skipped"]
    rows = [
        [
            line.name,
            f"{line.gflops:.2f}",
            *(cell for kind in kinds for cell in _cells(kind, line, by_name.get(_dense_line(line.name), line))),
            str(len(line.box)),
            _by_layer(line, lambda groups: _percent(groups, OBJECTS, routed=True)),
            _by_layer(line, lambda groups: " ".join(_percent(groups, s, routed=False) for s in SKIPPED_STUFF)),
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _dense_line(name: str) -> str:
    """Return the name of the dense row that had the trainings that a row had."""
    return "dense-untuned" if "-untuned" in name else "dense"


def _cells(kind: str, line: Line, dense: Line) -> tuple[str, str]:
    """Return an AP, and its difference to the dense baseline of the same seeds."""
    values, others = getattr(line, kind), getattr(dense, kind)
    gaps = [value - others[seed] for seed, value in values.items() if seed in others]
    return _spread(list(values.values())), _spread(gaps, "+.1f") if gaps and line is not dense else "-"


def plot(lines: list[Line], path: Path, title: str) -> None:
    """Draw box AP against executed GFLOPs, one line through the capacities of each kind of row."""
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[_kind(line.name)].append(line)
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for i, (kind, members) in enumerate(kinds.items()):
        box = [list(member.box.values()) for member in members]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in box]
        look: dict[str, Any] = {
            "color": f"C{i % COLOURS}",
            "marker": MARKERS[i // COLOURS % len(MARKERS)],
            "capsize": 3,
        }
        axes.errorbar([m.gflops for m in members], list(map(mean, box)), spread, label=kind, **look)
    axes.set(xlabel="executed GFLOPs per image", ylabel="box AP (COCO, %)", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    write_figure(path, figure)


def write_report(folder: Path) -> str:
    """Write table.md and plot.png into the folder of a study, and return the table."""
    lines = read_lines(folder)
    text = table(lines)
    write_text(folder / "table.md", text + "\n")
    plot(lines, folder / "plot.png", folder.name)
    return text


def _kind(name: str) -> str:
    """Return a line's kind: its name without the capacity."""
    for separator in (" at ", "-0."):
        name = name.partition(separator)[0]
    return "YOLO26" if name.startswith("yolo-") else name


def _spread(values: list[float], form: str = ".1f") -> str:
    """Return mean ± deviation."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _by_layer(line: Line, show: Any) -> str:
    """Return a figure for each layer."""
    return ", ".join(show(groups) for groups in line.recall.values()) or "-"


def _percent(groups: dict[str, list[float]], group: str, routed: bool) -> str:
    """Return the share of a group that was routed, or skipped."""
    if group not in groups:
        return "-"
    return f"{mean(groups[group] if routed else [100 - share for share in groups[group]]):.0f}"
